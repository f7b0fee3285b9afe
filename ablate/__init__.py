"""The harness: trains every cell of a grid under paired seeds and says which swap helped."""
