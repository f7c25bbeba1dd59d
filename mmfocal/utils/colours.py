"""Okabe and Ito's palette, which colour-blind readers can tell apart."""

BLACK, BLUE, ORANGE, GREEN = '#000000', '#0072B2', '#E69F00', '#009E73'
VERMILION, PURPLE, SKY, YELLOW = '#D55E00', '#CC79A7', '#56B4E9', '#F0E442'
