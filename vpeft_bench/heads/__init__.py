"""Dense heads: what turns a backbone's feature maps into boxes, masks and label maps.

A head knows the backbone's feature maps and nothing of methods, data or tasks; all of it is
trained.
"""
