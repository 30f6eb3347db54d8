module coppice

go 1.25.0
