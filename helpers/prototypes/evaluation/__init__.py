"""Are the prototypes what they claim? Measures of trained prototype networks (spec pixpnet, sections 4.5 and 8)."""
