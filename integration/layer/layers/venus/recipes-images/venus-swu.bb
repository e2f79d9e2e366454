# No image: an update made of one.
IMAGE_INSTALL = ""
