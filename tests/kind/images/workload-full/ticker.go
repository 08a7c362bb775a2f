// Prints 1, 2, 3, … that a goroutine counts and another one checks; ends when they disagree.
package main

import (
	"fmt"
	"os"
	"time"
)

func main() {
	numbers, sums := make(chan int), make(chan int)
	go func() {
		sum := 0
		for n := range numbers {
			sum += n
			sums <- sum
		}
	}()
	ticker := time.NewTicker(100 * time.Millisecond)
	for n := 1; ; n++ {
		numbers <- n
		if sum := <-sums; sum != n*(n+1)/2 {
			os.Exit(3)
		}
		fmt.Println(n)
		<-ticker.C
	}
}
