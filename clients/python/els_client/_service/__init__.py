# `make reference` copies these modules from core; change those.
