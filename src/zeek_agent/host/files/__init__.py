"""Files that an asker names: every way to list, read or hash one goes through the path gate of this package.

A path is walked component by component. Each step is opened as a mere place (`O_PATH`), its mount is judged before
anything below it is touched, and links are resolved by their text, so that a file is judged by what it is and where it
lies, not by the name that led to it.
"""
