"""MixSyn: compositions and styles learned jointly from many sources. README.md has the equations and the choices made."""
