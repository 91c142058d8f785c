"""Software bills of materials: what an image is made of, in SPDX and CycloneDX."""
