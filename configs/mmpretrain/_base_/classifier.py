# Focal-T as a classifier of images of 224x224 pixels.
custom_imports = dict(imports=['mmfocal', 'mmfocal.weights.classifier'])

model = dict(
    _scope_='mmpretrain',
    type='ImageClassifier',
    backbone=dict(
        type='mmfocal.FocalTransformer',
        arch='tiny',
        # The last map is a single window, without tokens for a ring around it.
        clamp_windows=True,
        drop_path_rate=0.2,
        out_indices=(3,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(type='CrossEntropyLoss'),
        cal_acc=False,
    ),
)
# The authors' files are taken as they are: tools/test.py CONFIG FILE.
custom_hooks = [dict(type='AuthorsClassifierHook')]
