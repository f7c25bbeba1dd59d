# The backbones that the models of this folder choose from.
custom_imports = dict(imports=['mmfocal'], allow_failed_imports=False)

focal = dict(
    _delete_=True,
    type='FocalTransformer',
    arch='tiny',
    # Wider than (7, 5, 3, 1) of the ImageNet models, for images of 800 instead of 224 pixels.
    focal_windows=(15, 13, 9, 7),
    drop_path_rate=0.2,
)
# For detectors whose finest map has a stride of 8 pixels.
focal_from_stride_8 = dict(**focal, out_indices=(1, 2, 3))
