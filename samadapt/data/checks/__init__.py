"""What can be wrong with a data set: the codes of findings and the checks that report them."""
