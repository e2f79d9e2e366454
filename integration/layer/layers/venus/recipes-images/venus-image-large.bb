require venus-image.inc

IMAGE_INSTALL += "packagegroup-venus-large"
