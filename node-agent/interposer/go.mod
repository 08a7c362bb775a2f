module containermigration.io/interposer

go 1.26
