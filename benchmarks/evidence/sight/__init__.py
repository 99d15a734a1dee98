"""Do trained networks see more of space than their untrained twins, on real and on rendered pictures?"""
