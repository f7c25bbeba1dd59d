"""Settings of Sphinx, for `make docs`. GitHub shows the pages and the notebook as they are."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mmfocal.version import __version__

project = 'mmfocal'
release = version = __version__
copyright = 'the authors of mmfocal'
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'mmfocal {release}'
highlight_language = 'none'  # of blocks that name none: commands

# Notebooks show what their maintainers' last run has shown: python -m tools.dev.notebook.
nb_execution_mode = 'off'

# Anchors of headings as on GitHub. Links to files outside of docs/ become downloads.
myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented_params'
autodoc_default_options = {'members': True, 'show-inheritance': True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # autodoc lists attributes of dataclasses a second time else
# Long signatures take a line for each argument.
maximum_signature_line_length = 88
# Registered classes inherit from mmdet's and mmengine's, whose docstrings are not for Sphinx.
autodoc_inherit_docstrings = False
