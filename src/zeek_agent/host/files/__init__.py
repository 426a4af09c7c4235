"""Access to files that a query names: listing, reading and hashing go through the path gate of this package.

A path is walked component by component. Each component is opened with `O_PATH` only, its mount is checked before
anything below it is touched, and links are resolved by their text, so that the rules apply to the file and its
location, not to the name that led to it.
"""
