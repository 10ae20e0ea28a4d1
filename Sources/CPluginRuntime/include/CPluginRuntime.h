// What the plugin has in place of, or besides, parts of its C library. Nothing is declared here: the names are the C library's own.
