"""Charts as HTML strings: our own SVG, no library, no outside link; they stretch with the page and print."""
