"""Floods: segmentation learnt from areas alone (spec pinets, sections 6 to 10)."""
