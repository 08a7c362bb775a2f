module containermigration.io/testbed/pause

go 1.26.0
