require venus-image.inc
