"""Measuring finished nets, ours and other people's: errors by protocol, responses of layers."""
