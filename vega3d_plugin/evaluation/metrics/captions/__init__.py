"""Caption metrics in the forms of COCO's evaluation, which all the benchmarks use: BLEU, CIDEr-D, ROUGE-L, METEOR."""
