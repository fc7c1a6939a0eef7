"""MSCA (Zheng et al., "Example-Guided Image Synthesis across Arbitrary Scenes using Masked Spatial-Channel Attention")."""
