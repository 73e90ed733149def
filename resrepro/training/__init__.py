"""From a specification to a trained net: the loop, what makes its updates, and how it goes on."""
