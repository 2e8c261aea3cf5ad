"""The only room that changes the world: carries out a plan's steps."""
