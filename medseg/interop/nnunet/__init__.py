"""nnU-Net v2 (https://github.com/MIC-DKFZ/nnUNet, Apache-2.0): its dataset, fingerprint and plans files, and its planner's rules.

The rules were read from nnU-Net 2.8.1 and dynamic-network-architectures 0.4.4 and written anew; nothing of nnU-Net is imported.
"""
