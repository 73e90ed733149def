"""The paper's figures from run records and from the nets' architecture."""
