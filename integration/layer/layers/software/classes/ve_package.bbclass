# Each package has a folder of its own, and programs are in it. Expanded at once: a bindir set later is the recipe's.
bindir := "/opt/victronenergy/${PN}"
permanentdir = "/data"
