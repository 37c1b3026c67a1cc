#!/bin/sh
# Compiles a small program again and again, and runs it: `compiled NUMBER`, or `wrong NUMBER`. What it reads comes from the disk.
number=0
while :; do
  number=$((number + 1))
  want=$((number % 100))
  echo "int main(void) { return $want; }" > program.c
  rm -f program
  tcc -o program program.c
  ./program
  if [ $? = "$want" ]; then echo "compiled $number" > /dev/ttyS0; else echo "wrong $number" > /dev/ttyS0; fi
  if [ $((number % 10)) = 0 ]; then sync && echo 1 > /proc/sys/vm/drop_caches; fi
done
