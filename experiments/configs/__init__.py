"""The config files. oxe_paligemma.py has every field; the others change some of them."""
