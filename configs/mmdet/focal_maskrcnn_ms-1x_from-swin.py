# Begins with the weights of Swin-T, whose links are alive. The ring, pooling and the position bias
# of both, which Swin lacks, are new.
_base_ = 'focal_maskrcnn_ms-1x.py'

model = dict(backbone={{_base_.from_swin}})
