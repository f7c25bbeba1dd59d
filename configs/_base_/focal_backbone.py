# focal_settings.py with the import that registers the backbones.
_base_ = 'focal_settings.py'

custom_imports = dict(imports=['mmfocal'], allow_failed_imports=False)
