# `make reference` copies these modules; change those.
