"""People compare pairs of images on a local web page: blind, one key a choice, every vote on disk before the next."""
