"""How Sphinx builds the site; bin/docs runs it."""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

import flask_sequence

project = "flask-sequence"
author = copyright = "flask-sequence contributors"
release = version = flask_sequence.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_design",
    "notfound.extension",
    "sphinx_reredirects",
    "sphinxext.opengraph",
    "site_pages",
]
exclude_patterns = ["_ext", "examples"]
nitpicky = True
smartquotes = False
suppress_warnings = ["misc.highlighting_failure"]  # of an ellipsis in what is no Python

myst_enable_extensions = ["alert", "colon_fence", "deflist", "tasklist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True

# The inventories of other projects are fetched on request only, so that a build needs no network.
INVENTORIES = {
    "python": ("https://docs.python.org/3", None),
    "flask": ("https://flask.palletsprojects.com/en/stable", None),
    "flask_sqlalchemy": ("https://flask-sqlalchemy.palletsprojects.com/en/stable", None),
    "sqlalchemy": ("https://docs.sqlalchemy.org/en/20", None),
    "celery": ("https://docs.celeryq.dev/en/stable", None),
}
intersphinx_mapping = INVENTORIES if os.environ.get("DOCS_INTERSPHINX") else {}
nitpick_ignore_regex = [
    ("py:.*", r"(?!flask_sequence\b).*"),
    (
        "py:.*",
        r"flask_sequence\.(definition|engine|rows|sequence|status)\..*",
    ),  # where names come from
]

html_theme = "furo"
html_title = "flask-sequence"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1d6a72", "color-brand-content": "#1d6a72"},
    "dark_css_variables": {"color-brand-primary": "#6cc5cf", "color-brand-content": "#6cc5cf"},
}
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go, .c1"
ogp_site_name = "flask-sequence"
ogp_social_cards = {"enable": False}
ogp_site_url = os.environ.get("DOCS_URL", "")
notfound_urls_prefix = os.environ.get("DOCS_PREFIX", "/")

redirects = {  # the pages of earlier versions, by their old names
    "howto-deploy": "guide/deploy.html",
    "howto-testing": "guide/testing.html",
    "lifecycle": "explanation/lifecycle.html",
    "performance": "explanation/cost.html",
    "reliability": "explanation/guarantees.html",
    "reference": "reference/api.html",
}
