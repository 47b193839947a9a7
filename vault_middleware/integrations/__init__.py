"""One module a framework or library, imported by who uses it: nothing here is imported by the package itself."""
