"""What the numbers of a UNet's taps count."""

#: What the taps are in the UNets of Stable Diffusion, which have four down blocks.
STAGES = (
    "0 to 3: outputs of the UNet's down blocks, 4: of its mid block, 5 to 8: of its up blocks; "
    "left out: what enters the mid block, the same as 3"
)
