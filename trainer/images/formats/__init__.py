"""Forms of image sets, a file each, which registers what it reads."""
