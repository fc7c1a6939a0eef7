"""Class- and layer-wise VAE (Endo and Kanamori, Computer Graphics Forum 2020): a latent code per class and per level."""
