"""The same programs in each language with a toolchain, for `test_toolchains.py`.

The last part has twenty small problems. A solution replaces BODY in a program that reads all numbers of stdin into `a`,
or its first line into `s`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate, groupby
from typing import Any

from faasrt import TestCase

SUM = {
    "c": r"""
        #include <stdio.h>
        int main(void) {
            long a, b;
            scanf("%ld %ld", &a, &b);
            printf("%ld\n", a + b);
        }
    """,
    "cpp": r"""
        #include <iostream>
        int main() {
            long a, b;
            std::cin >> a >> b;
            std::cout << a + b << '\n';
        }
    """,
    "go": """
        package main
        import "fmt"
        func main() {
            var a, b int
            fmt.Scan(&a, &b)
            fmt.Println(a + b)
        }
    """,
    "rust": """
        use std::io::Read;
        fn main() {
            let mut s = String::new();
            std::io::stdin().read_to_string(&mut s).unwrap();
            println!("{}", s.split_whitespace().map(|n| n.parse::<i64>().unwrap()).sum::<i64>());
        }
    """,
    "java": """
        import java.util.Scanner;
        public class Main {
            public static void main(String[] a) {
                Scanner s = new Scanner(System.in);
                System.out.println(s.nextLong() + s.nextLong());
            }
        }
    """,
    "bash": """
        read -r a b
        echo $((a + b))
    """,
}
"""Print the sum of the two numbers on stdin."""

ARGUMENTS = {
    "c": """
        #include <stdio.h>
        int main(int n, char **v) {
            for (int i = 1; i < n; i++) printf("[%s]", v[i]);
        }
    """,
    "cpp": """
        #include <iostream>
        int main(int n, char **v) {
            for (int i = 1; i < n; i++) std::cout << "[" << v[i] << "]";
        }
    """,
    "go": """
        package main
        import ("fmt"; "os")
        func main() { for _, a := range os.Args[1:] { fmt.Printf("[%s]", a) } }
    """,
    "rust": """
        fn main() {
            for a in std::env::args().skip(1) {
                print!("[{a}]");
            }
        }
    """,
    "java": """
        class Main {
            public static void main(String[] v) {
                for (String a : v) System.out.print("[" + a + "]");
            }
        }
    """,
    "bash": "printf '[%s]' \"$@\"",
}
"""Print each argument in brackets."""

COPY = {
    "c": """
        #include <stdio.h>
        int main(void) {
            FILE *i = fopen("data/in.txt", "r"), *o = fopen("out.txt", "w");
            int c;
            while ((c = getc(i)) != EOF) putc(c, o);
            fclose(o);
        }
    """,
    "cpp": """
        #include <fstream>
        int main() {
            std::ifstream i("data/in.txt");
            std::ofstream("out.txt") << i.rdbuf();
        }
    """,
    "go": """
        package main
        import "os"
        func main() {
            b, e := os.ReadFile("data/in.txt")
            if e != nil { panic(e) }
            os.WriteFile("out.txt", b, 0o644)
        }
    """,
    "rust": """
        fn main() {
            std::fs::copy("data/in.txt", "out.txt").unwrap();
        }
    """,
    "java": """
        import java.nio.file.*;
        class Main {
            public static void main(String[] a) throws Exception {
                Files.copy(Path.of("data/in.txt"), Path.of("out.txt"));
            }
        }
    """,
    "bash": "cat data/in.txt > out.txt",
}
"""Copy the file data/in.txt to out.txt."""

EXIT = {
    "c": r"""
        #include <stdio.h>
        #include <stdlib.h>
        int main(void) {
            fputs("bad\n", stderr);
            exit(3);
        }
    """,
    "cpp": r"""
        #include <iostream>
        int main() {
            std::cerr << "bad\n";
            return 3;
        }
    """,
    "go": """
        package main
        import ("fmt"; "os")
        func main() {
            fmt.Fprintln(os.Stderr, "bad")
            os.Exit(3)
        }
    """,
    "rust": """
        fn main() {
            eprintln!("bad");
            std::process::exit(3);
        }
    """,
    "java": """
        class Main {
            public static void main(String[] a) {
                System.err.println("bad");
                System.exit(3);
            }
        }
    """,
    "bash": """
        echo bad >&2
        exit 3
    """,
}
"""Print "bad" to stderr, and exit with code 3."""

LOOP = {
    "c": """
        #include <stdio.h>
        int main(void) {
            puts("before");
            fflush(stdout);
            for (;;);
        }
    """,
    "cpp": """
        #include <iostream>
        int main() {
            std::cout << "before" << std::endl;
            for (volatile int i = 0;;) i = 1;
        }
    """,
    "go": """
        package main
        import "fmt"
        func main() {
            fmt.Println("before")
            for {}
        }
    """,
    "rust": """
        fn main() {
            println!("before");
            loop {
                std::hint::spin_loop();
            }
        }
    """,
    "java": """
        class Main {
            public static void main(String[] a) {
                System.out.println("before");
                for (;;);
            }
        }
    """,
    "bash": """
        echo before
        while :; do
            :
        done
    """,
}
"""Print "before", and loop forever."""

FLOOD = {
    "c": """
        #include <stdio.h>
        int main(void) {
            for (;;) puts("0123456789");
        }
    """,
    "cpp": r"""
        #include <iostream>
        int main() {
            for (;;) std::cout << "0123456789\n";
        }
    """,
    "go": """
        package main
        import "fmt"
        func main() { for { fmt.Println("0123456789") } }
    """,
    "rust": """
        fn main() {
            loop {
                println!("0123456789");
            }
        }
    """,
    "java": """
        class Main {
            public static void main(String[] a) {
                for (;;) System.out.println("0123456789");
            }
        }
    """,
    "bash": """
        while :; do
            echo 0123456789
        done
    """,
}
"""Print forever."""

MEMORY = {
    "c": """
        #include <stdlib.h>
        #include <string.h>
        int main(void) {
            for (;;) {
                char *p = malloc(1 << 20);
                memset(p, 1, 1 << 20);
            }
        }
    """,
    "cpp": """
        #include <vector>
        int main() {
            std::vector<int> v;
            for (;;) v.push_back(1);
        }
    """,
    "go": """
        package main
        var kept [][]byte
        func main() {
            for {
                b := make([]byte, 1<<20)
                for i := range b { b[i] = 1 }
                kept = append(kept, b)
            }
        }
    """,
    "rust": """
        fn main() {
            let mut v: Vec<u64> = Vec::new();
            loop {
                v.push(1);
            }
        }
    """,
    "java": """
        import java.util.*;
        class Main {
            public static void main(String[] a) {
                List<byte[]> kept = new ArrayList<>();
                for (;;) kept.add(new byte[1 << 20]);
            }
        }
    """,
    "bash": """
        x=0123456789
        while :; do
            x="$x$x"
        done
    """,
}
"""Allocate memory forever."""

BROKEN = {
    "c": (
        """
        int main(void) {
            return 1 +;
        }
        """,
        2,
        15,
    ),
    "cpp": (
        """
        int main() {
            return 1 +;
        }
        """,
        2,
        15,
    ),
    "go": (
        """
        package main
        func main() {
            x := 1 +
        }
        """,
        4,
        1,
    ),
    "rust": (
        """
        fn main() {
            let x = ;
        }
        """,
        2,
        13,
    ),
    "java": (
        """
        class Main {
            int x = ;
        }
        """,
        2,
        13,
    ),
    "bash": (
        """
        echo never
        if true; then
        fi
        """,
        3,
        None,
    ),
}
"""Programs that do not compile, with the line and the column of the first error."""

RAISES = {
    "cpp": (
        """
        #include <stdexcept>
        int main() {
            throw std::runtime_error("boom");
        }
        """,
        "std::runtime_error",
        "boom",
    ),
    "go": (
        """
        package main
        func main() { panic("boom") }
        """,
        "panic",
        "boom",
    ),
    "rust": (
        """
        fn main() {
            panic!("boom");
        }
        """,
        "panic",
        "boom",
    ),
    "java": (
        """
        class Main {
            public static void main(String[] a) {
                throw new IllegalStateException("boom");
            }
        }
        """,
        "java.lang.IllegalStateException",
        "boom",
    ),
}
"""Programs that raise an exception, with its name and its message."""

STREAM = {
    "c": """
        #include <stdio.h>
        #include <unistd.h>
        int main(void) {
            puts("one");
            fflush(stdout);
            char c;
            read(0, &c, 1);
            for (;;) pause();
        }
    """,
    "cpp": """
        #include <iostream>
        #include <unistd.h>
        int main() {
            std::cout << "one" << std::endl;
            for (;;) pause();
        }
    """,
    "go": """
        package main
        import ("fmt"; "time")
        func main() {
            fmt.Println("one")
            time.Sleep(time.Hour)
        }
    """,
    "rust": """
        fn main() {
            println!("one");
            std::thread::sleep(std::time::Duration::from_secs(3600));
        }
    """,
    "java": """
        class Main {
            public static void main(String[] a) throws Exception {
                System.out.println("one");
                Thread.sleep(3600_000);
            }
        }
    """,
    "bash": """
        echo one
        sleep 3600
    """,
}
"""Print "one", and wait until the program is ended."""

NUMBERS = {
    "c": """
        #include <stdio.h>
        #include <stdlib.h>
        typedef long long L;
        static L a[1000];
        int n;
        static int less(const void *x, const void *y) {
            L p = *(L *)x, q = *(L *)y;
            return (p > q) - (p < q);
        }
        int main(void) {
            (void)less;
            while (scanf("%lld", &a[n]) == 1) n++;
            BODY
            return 0;
        }
    """,
    "cpp": """
        #include <algorithm>
        #include <iostream>
        #include <numeric>
        #include <set>
        #include <vector>
        using namespace std;
        typedef long long L;
        int main() {
            vector<L> a;
            for (L x; cin >> x;) a.push_back(x);
            int n = a.size();
            (void)n;
            BODY
        }
    """,
    "go": """
        package main
        import ("bufio"; "fmt"; "os"; "sort"; "strings")
        var _, _ = sort.Ints, strings.Fields
        func main() {
            in := bufio.NewReader(os.Stdin)
            a := []int{}
            for {
                var x int
                if _, e := fmt.Fscan(in, &x); e != nil { break }
                a = append(a, x)
            }
            n := len(a)
            _ = n
            BODY
        }
    """,
    "rust": """
        #![allow(unused)]
        use std::io::Read;
        fn main() {
            let mut t = String::new();
            std::io::stdin().read_to_string(&mut t).unwrap();
            let mut a: Vec<i64> = t.split_whitespace().map(|x| x.parse().unwrap()).collect();
            BODY
        }
    """,
    "java": """
        import java.util.*;
        import java.util.stream.*;
        public class Main {
            public static void main(String[] none) {
                long[] a = new Scanner(System.in).tokens().mapToLong(Long::parseLong).toArray();
                int n = a.length;
                BODY
            }
        }
    """,
    "bash": """
        read -r -d '' -a a
        n=${#a[@]}
        BODY
    """,
}
TEXT = {
    "c": r"""
        #include <ctype.h>
        #include <stdio.h>
        #include <string.h>
        int main(void) {
            static char s[1000];
            fgets(s, 1000, stdin);
            s[strcspn(s, "\n")] = 0;
            int n = strlen(s);
            BODY
            return 0;
        }
    """,
    "cpp": """
        #include <algorithm>
        #include <iostream>
        #include <sstream>
        using namespace std;
        int main() {
            string s;
            getline(cin, s);
            BODY
        }
    """,
    "go": r"""
        package main
        import ("bufio"; "fmt"; "os"; "strings")
        var _ = strings.Fields
        func main() {
            s, _ := bufio.NewReader(os.Stdin).ReadString(10)
            s = strings.TrimRight(s, "\n")
            BODY
        }
    """,
    "rust": r"""
        #![allow(unused)]
        fn main() {
            let mut t = String::new();
            std::io::stdin().read_line(&mut t).unwrap();
            let s = t.trim_end_matches('\n');
            BODY
        }
    """,
    "java": """
        import java.util.*;
        import java.util.stream.*;
        public class Main {
            public static void main(String[] none) {
                String s = new Scanner(System.in).nextLine();
                BODY
            }
        }
    """,
    "bash": """
        IFS= read -r s
        BODY
    """,
}


def _collatz(x: int) -> int:
    steps = 0
    while x != 1:
        x, steps = (x // 2 if x % 2 == 0 else 3 * x + 1), steps + 1
    return steps


def _fibonacci(count: int) -> int:
    x, y = 0, 1
    for _ in range(count):
        x, y = y, (x + y) % 1_000_000_007
    return x


def _longest_run(a: list[int]) -> int:
    return max(accumulate(range(1, len(a)), lambda run, i: run + 1 if a[i] > a[i - 1] else 1, initial=1))


LISTS = ["5 3 8 8 -2 7", "1", "10 9 8", "4 6 4 12 100 1000000000"]
COUNTS = ["1", "10", "97", "500"]
WORDS = ["hello world", "level", "a", "step on no pets", "aaabccdd eee"]

# The scaffold, the inputs, the answer in Python, and the solutions: C, C++, Go, Rust, Java and Bash.
_PROBLEMS: dict[str, tuple[dict[str, str], list[str], Callable[[Any], object], list[str]]] = {
    "sum": (
        NUMBERS,
        LISTS,
        sum,
        [
            r"""
            L r = 0;
            for (int i = 0; i < n; i++) r += a[i];
            printf("%lld\n", r);
            """,
            "cout << accumulate(a.begin(), a.end(), 0LL) << endl;",
            """
            r := 0
            for _, x := range a { r += x }
            fmt.Println(r)
            """,
            'println!("{}", a.iter().sum::<i64>());',
            "System.out.println(Arrays.stream(a).sum());",
            """
            r=0
            for x in ${a[@]}; do
                ((r += x))
            done
            echo $r
            """,
        ],
    ),
    "maximum": (
        NUMBERS,
        LISTS,
        max,
        [
            r"""
            L r = a[0];
            for (int i = 1; i < n; i++) if (a[i] > r) r = a[i];
            printf("%lld\n", r);
            """,
            "cout << *max_element(a.begin(), a.end()) << endl;",
            """
            r := a[0]
            for _, x := range a { if x > r { r = x } }
            fmt.Println(r)
            """,
            'println!("{}", a.iter().max().unwrap());',
            "System.out.println(Arrays.stream(a).max().getAsLong());",
            """
            r=${a[0]}
            for x in ${a[@]}; do
                ((x > r)) && r=$x
            done
            echo $r
            """,
        ],
    ),
    "even numbers": (
        NUMBERS,
        LISTS,
        lambda a: sum(x % 2 == 0 for x in a),
        [
            r"""
            int r = 0;
            for (int i = 0; i < n; i++) r += a[i] % 2 == 0;
            printf("%d\n", r);
            """,
            """
            cout << count_if(a.begin(), a.end(), [](L x) {
                return x % 2 == 0;
            }) << endl;
            """,
            """
            r := 0
            for _, x := range a { if x%2 == 0 { r++ } }
            fmt.Println(r)
            """,
            'println!("{}", a.iter().filter(|x| *x % 2 == 0).count());',
            "System.out.println(Arrays.stream(a).filter(x -> x % 2 == 0).count());",
            """
            r=0
            for x in ${a[@]}; do
                ((x % 2 == 0)) && ((r += 1))
            done
            echo $r
            """,
        ],
    ),
    "backwards": (
        NUMBERS,
        LISTS,
        lambda a: " ".join(map(str, a[::-1])),
        [
            'for (int i = n - 1; i >= 0; i--) printf("%lld ", a[i]);',
            """
            reverse(a.begin(), a.end());
            for (L x : a) cout << x << " ";
            """,
            'for i := n - 1; i >= 0; i-- { fmt.Print(a[i], " ") }',
            """
            for x in a.iter().rev() {
                print!("{x} ");
            }
            """,
            'for (int i = n - 1; i >= 0; i--) System.out.print(a[i] + " ");',
            """
            for ((i = n - 1; i >= 0; i--)); do
                printf '%s ' ${a[i]}
            done
            """,
        ],
    ),
    "sorted": (
        NUMBERS,
        LISTS,
        lambda a: " ".join(map(str, sorted(a))),
        [
            """
            qsort(a, n, sizeof a[0], less);
            for (int i = 0; i < n; i++) printf("%lld ", a[i]);
            """,
            """
            sort(a.begin(), a.end());
            for (L x : a) cout << x << " ";
            """,
            """
            sort.Ints(a)
            fmt.Println(strings.Trim(fmt.Sprint(a), "[]"))
            """,
            """
            a.sort();
            for x in a {
                print!("{x} ");
            }
            """,
            'Arrays.stream(a).sorted().forEach(x -> System.out.print(x + " "));',
            "printf '%s\\n' ${a[@]} | sort -n | tr '\\n' ' '",
        ],
    ),
    "greatest common divisor": (
        NUMBERS,
        LISTS,
        lambda a: math.gcd(*a),
        [
            r"""
            L r = 0;
            for (int i = 0; i < n; i++) {
                L x = llabs(a[i]);
                while (x) {
                    L t = r % x;
                    r = x;
                    x = t;
                }
            }
            printf("%lld\n", r);
            """,
            """
            L r = 0;
            for (L x : a) r = gcd(r, x);
            cout << r << endl;
            """,
            """
            r := 0
            for _, x := range a {
                if x < 0 { x = -x }
                for x != 0 { r, x = x, r%x }
            }
            fmt.Println(r)
            """,
            """
            let mut r = 0i64;
            for x in a {
                let mut x = x.abs();
                while x != 0 {
                    (r, x) = (x, r % x);
                }
            }
            println!("{r}");
            """,
            """
            long r = 0;
            for (long x : a) {
                x = Math.abs(x);
                while (x != 0) {
                    long t = r % x;
                    r = x;
                    x = t;
                }
            }
            System.out.println(r);
            """,
            """
            r=0
            for x in ${a[@]}; do
                x=${x#-}
                while ((x)); do
                    ((t = r % x, r = x, x = t))
                done
            done
            echo $r
            """,
        ],
    ),
    "fibonacci": (
        NUMBERS,
        COUNTS,
        lambda a: _fibonacci(a[0]),
        [
            r"""
            L x = 0, y = 1;
            while (a[0]--) {
                L t = (x + y) % 1000000007;
                x = y;
                y = t;
            }
            printf("%lld\n", x);
            """,
            """
            L x = 0, y = 1;
            while (a[0]--) {
                swap(x, y);
                y = (x + y) % 1000000007;
            }
            cout << x << endl;
            """,
            """
            x, y := 0, 1
            for i := 0; i < a[0]; i++ { x, y = y, (x+y)%1000000007 }
            fmt.Println(x)
            """,
            """
            let (mut x, mut y) = (0, 1);
            for _ in 0..a[0] {
                (x, y) = (y, (x + y) % 1_000_000_007);
            }
            println!("{x}");
            """,
            """
            long x = 0, y = 1;
            while (a[0]-- > 0) {
                long t = (x + y) % 1000000007;
                x = y;
                y = t;
            }
            System.out.println(x);
            """,
            """
            x=0 y=1
            for ((i = 0; i < a[0]; i++)); do
                ((t = (x + y) % 1000000007, x = y, y = t))
            done
            echo $x
            """,
        ],
    ),
    "primes": (
        NUMBERS,
        COUNTS,
        lambda a: sum(all(x % d for d in range(2, x)) for x in range(2, a[0] + 1)),
        [
            r"""
            int r = 0;
            for (int x = 2; x <= a[0]; x++) {
                int d = 2;
                while (d < x && x % d) d++;
                r += d == x;
            }
            printf("%d\n", r);
            """,
            """
            vector<bool> no(a[0] + 1);
            int r = 0;
            for (int x = 2; x <= a[0]; x++) if (!no[x]) {
                r++;
                for (int y = x; y <= a[0]; y += x) no[y] = true;
            }
            cout << r << endl;
            """,
            """
            r := 0
            for x := 2; x <= a[0]; x++ {
                d := 2
                for d < x && x%d != 0 { d++ }
                if d == x { r++ }
            }
            fmt.Println(r)
            """,
            'println!("{}", (2..=a[0]).filter(|x| (2..*x).all(|d| x % d != 0)).count());',
            """
            LongStream candidates = LongStream.rangeClosed(2, a[0]);
            System.out.println(candidates.filter(x -> LongStream.range(2, x).noneMatch(d -> x % d == 0)).count());
            """,
            """
            r=0
            for ((x = 2; x <= a[0]; x++)); do
                for ((d = 2; d * d <= x && x % d; d++)); do
                    :
                done
                ((d * d > x)) && ((r += 1))
            done
            echo $r
            """,
        ],
    ),
    "collatz": (
        NUMBERS,
        COUNTS,
        lambda a: _collatz(a[0]),
        [
            r"""
            int r = 0;
            for (L x = a[0]; x != 1; r++) x = x % 2 ? 3 * x + 1 : x / 2;
            printf("%d\n", r);
            """,
            """
            int r = 0;
            for (L x = a[0]; x != 1; ++r) x = x & 1 ? 3 * x + 1 : x >> 1;
            cout << r << endl;
            """,
            """
            r := 0
            for x := a[0]; x != 1; r++ { if x%2 == 0 { x /= 2 } else { x = 3*x + 1 } }
            fmt.Println(r)
            """,
            """
            let (mut x, mut r) = (a[0], 0);
            while x != 1 {
                x = if x % 2 == 0 { x / 2 } else { 3 * x + 1 };
                r += 1;
            }
            println!("{r}");
            """,
            """
            int r = 0;
            for (long x = a[0]; x != 1; r++) x = x % 2 == 0 ? x / 2 : 3 * x + 1;
            System.out.println(r);
            """,
            """
            r=0
            for ((x = a[0]; x != 1; r++)); do
                ((x = x % 2 ? 3 * x + 1 : x / 2))
            done
            echo $r
            """,
        ],
    ),
    "longest increasing run": (
        NUMBERS,
        LISTS,
        _longest_run,
        [
            r"""
            int r = 1, c = 1;
            for (int i = 1; i < n; i++) {
                c = a[i] > a[i - 1] ? c + 1 : 1;
                if (c > r) r = c;
            }
            printf("%d\n", r);
            """,
            """
            int r = 1, c = 1;
            for (int i = 1; i < n; i++) {
                c = a[i] > a[i - 1] ? c + 1 : 1;
                r = max(r, c);
            }
            cout << r << endl;
            """,
            """
            r, c := 1, 1
            for i := 1; i < n; i++ {
                if a[i] > a[i-1] { c++ } else { c = 1 }
                r = max(r, c)
            }
            fmt.Println(r)
            """,
            """
            let (mut r, mut c) = (1, 1);
            for w in a.windows(2) {
                c = if w[1] > w[0] { c + 1 } else { 1 };
                r = r.max(c);
            }
            println!("{r}");
            """,
            """
            int r = 1, c = 1;
            for (int i = 1; i < n; i++) {
                c = a[i] > a[i - 1] ? c + 1 : 1;
                r = Math.max(r, c);
            }
            System.out.println(r);
            """,
            """
            r=1 c=1
            for ((i = 1; i < n; i++)); do
                ((c = a[i] > a[i - 1] ? c + 1 : 1, r = c > r ? c : r))
            done
            echo $r
            """,
        ],
    ),
    "largest subarray": (
        NUMBERS,
        LISTS,
        lambda a: max(accumulate(a, lambda best, x: max(best + x, x))),
        [
            r"""
            L r = a[0], c = a[0];
            for (int i = 1; i < n; i++) {
                c = c > 0 ? c + a[i] : a[i];
                if (c > r) r = c;
            }
            printf("%lld\n", r);
            """,
            """
            L r = a[0], c = 0;
            for (L x : a) {
                c = max(c + x, x);
                r = max(r, c);
            }
            cout << r << endl;
            """,
            """
            r, c := a[0], 0
            for _, x := range a {
                c = max(c+x, x)
                r = max(r, c)
            }
            fmt.Println(r)
            """,
            """
            let (mut r, mut c) = (a[0], 0);
            for x in a {
                c = x.max(c + x);
                r = r.max(c);
            }
            println!("{r}");
            """,
            """
            long r = a[0], c = 0;
            for (long x : a) {
                c = Math.max(c + x, x);
                r = Math.max(r, c);
            }
            System.out.println(r);
            """,
            """
            r=${a[0]} c=0
            for x in ${a[@]}; do
                ((c = c > 0 ? c + x : x, r = c > r ? c : r))
            done
            echo $r
            """,
        ],
    ),
    "distinct numbers": (
        NUMBERS,
        LISTS,
        lambda a: len(set(a)),
        [
            r"""
            qsort(a, n, sizeof a[0], less);
            int r = 1;
            for (int i = 1; i < n; i++) r += a[i] != a[i - 1];
            printf("%d\n", r);
            """,
            "cout << set<L>(a.begin(), a.end()).size() << endl;",
            """
            seen := map[int]bool{}
            for _, x := range a { seen[x] = true }
            fmt.Println(len(seen))
            """,
            'println!("{}", a.iter().collect::<std::collections::HashSet<_>>().len());',
            "System.out.println(Arrays.stream(a).distinct().count());",
            """
            declare -A seen
            for x in ${a[@]}; do
                seen[$x]=1
            done
            echo ${#seen[@]}
            """,
        ],
    ),
    "sum of digits": (
        NUMBERS,
        COUNTS,
        lambda a: sum(map(int, str(a[0]))),
        [
            r"""
            int r = 0;
            for (L x = a[0]; x; x /= 10) r += x % 10;
            printf("%d\n", r);
            """,
            """
            int r = 0;
            for (char c : to_string(a[0])) r += c - '0';
            cout << r << endl;
            """,
            """
            r := 0
            for x := a[0]; x > 0; x /= 10 { r += x % 10 }
            fmt.Println(r)
            """,
            'println!("{}", a[0].to_string().chars().map(|c| c.to_digit(10).unwrap()).sum::<u32>());',
            "System.out.println(Long.toString(a[0]).chars().map(c -> c - '0').sum());",
            """
            r=0
            for ((x = a[0]; x; x /= 10)); do
                ((r += x % 10))
            done
            echo $r
            """,
        ],
    ),
    "binary": (
        NUMBERS,
        COUNTS,
        lambda a: f"{a[0]:b}",
        [
            """
            char t[70];
            int k = 0;
            for (L x = a[0]; x; x /= 2) t[k++] = '0' + x % 2;
            while (k) putchar(t[--k]);
            """,
            """
            string t;
            for (L x = a[0]; x; x /= 2) t = char(48 + x % 2) + t;
            cout << t << endl;
            """,
            'fmt.Printf("%b\\n", a[0])',
            'println!("{:b}", a[0]);',
            "System.out.println(Long.toBinaryString(a[0]));",
            """
            t=
            for ((x = a[0]; x; x /= 2)); do
                t=$((x % 2))$t
            done
            echo $t
            """,
        ],
    ),
    "reversed text": (
        TEXT,
        WORDS,
        lambda s: s[::-1],
        [
            "while (n) putchar(s[--n]);",
            """
            reverse(s.begin(), s.end());
            cout << s << endl;
            """,
            'for i := len(s) - 1; i >= 0; i-- { fmt.Printf("%c", s[i]) }',
            'println!("{}", s.chars().rev().collect::<String>());',
            "System.out.println(new StringBuilder(s).reverse());",
            """
            for ((i = ${#s} - 1; i >= 0; i--)); do
                printf %s "${s:i:1}"
            done
            """,
        ],
    ),
    "palindrome": (
        TEXT,
        WORDS,
        lambda s: "yes" if s == s[::-1] else "no",
        [
            """
            int i = 0;
            while (i < n && s[i] == s[n - 1 - i]) i++;
            puts(i == n ? "yes" : "no");
            """,
            'cout << (equal(s.begin(), s.end(), s.rbegin()) ? "yes" : "no") << endl;',
            """
            r := "yes"
            for i := range s { if s[i] != s[len(s)-1-i] { r = "no" } }
            fmt.Println(r)
            """,
            'println!("{}", if s.chars().eq(s.chars().rev()) { "yes" } else { "no" });',
            'System.out.println(new StringBuilder(s).reverse().toString().equals(s) ? "yes" : "no");',
            """
            r=
            for ((i = 0; i < ${#s}; i++)); do
                r=${s:i:1}$r
            done
            [ "$r" = "$s" ] && echo yes || echo no
            """,
        ],
    ),
    "vowels": (
        TEXT,
        WORDS,
        lambda s: sum(c in "aeiou" for c in s),
        [
            r"""
            int r = 0;
            for (int i = 0; i < n; i++) r += strchr("aeiou", s[i]) != 0;
            printf("%d\n", r);
            """,
            """
            cout << count_if(s.begin(), s.end(), [](char c) {
                return string("aeiou").find(c) != string::npos;
            }) << endl;
            """,
            """
            r := 0
            for _, c := range s { if strings.ContainsRune("aeiou", c) { r++ } }
            fmt.Println(r)
            """,
            'println!("{}", s.chars().filter(|c| "aeiou".contains(*c)).count());',
            'System.out.println(s.chars().filter(c -> "aeiou".indexOf(c) >= 0).count());',
            """
            t=${s//[^aeiou]/}
            echo ${#t}
            """,
        ],
    ),
    "words": (
        TEXT,
        WORDS,
        lambda s: len(s.split()),
        [
            r"""
            int r = 0;
            for (int i = 0; i < n; i++) r += s[i] != ' ' && (i == 0 || s[i - 1] == ' ');
            printf("%d\n", r);
            """,
            """
            istringstream in(s);
            int r = 0;
            for (string w; in >> w;) r++;
            cout << r << endl;
            """,
            "fmt.Println(len(strings.Fields(s)))",
            'println!("{}", s.split_whitespace().count());',
            'System.out.println(s.split(" ").length);',
            """
            set -- $s
            echo $#
            """,
        ],
    ),
    "caesar": (
        TEXT,
        WORDS,
        lambda s: "".join(chr((ord(c) - 94) % 26 + 97) if c.islower() else c for c in s),
        [
            "for (int i = 0; i < n; i++) putchar(islower(s[i]) ? (s[i] - 94) % 26 + 97 : s[i]);",
            """
            for (char &c : s) if (islower(c)) c = (c - 94) % 26 + 97;
            cout << s << endl;
            """,
            """
            for _, c := range s {
                if c >= 97 && c <= 122 { c = (c-94)%26 + 97 }
                fmt.Printf("%c", c)
            }
            """,
            """
            let moved = s.bytes().map(|c| if c.is_ascii_lowercase() { (c - 94) % 26 + 97 } else { c });
            println!("{}", moved.map(|c| c as char).collect::<String>());
            """,
            """
            IntStream moved = s.chars().map(c -> Character.isLowerCase(c) ? (c - 94) % 26 + 97 : c);
            System.out.println(moved.mapToObj(c -> String.valueOf((char) c)).collect(Collectors.joining()));
            """,
            'echo "$s" | tr a-z d-za-c',
        ],
    ),
    "run lengths": (
        TEXT,
        WORDS,
        lambda s: "".join(f"{c}{len([*g])}" for c, g in groupby(s)),
        [
            """
            for (int i = 0, j; i < n; i = j) {
                for (j = i; s[j] == s[i]; j++);
                printf("%c%d", s[i], j - i);
            }
            """,
            """
            for (size_t i = 0, j; i < s.size(); i = j) {
                j = min(s.find_first_not_of(s[i], i), s.size());
                cout << s[i] << j - i;
            }
            """,
            """
            for i, j := 0, 0; i < len(s); i = j {
                for j = i; j < len(s) && s[j] == s[i]; j++ { }
                fmt.Printf("%c%d", s[i], j-i)
            }
            """,
            """
            let b = s.as_bytes();
            let mut i = 0;
            while i < b.len() {
                let j = (i..b.len()).find(|k| b[*k] != b[i]).unwrap_or(b.len());
                print!("{}{}", b[i] as char, j - i);
                i = j;
            }
            """,
            """
            for (int i = 0, j; i < s.length(); i = j) {
                for (j = i; j < s.length() && s.charAt(j) == s.charAt(i); j++);
                System.out.print(s.charAt(i) + "" + (j - i));
            }
            """,
            """
            for ((i = 0; i < ${#s}; i = j)); do
                c=${s:i:1}
                for ((j = i; j < ${#s}; j++)); do
                    [ "${s:j:1}" = "$c" ] || break
                done
                printf "%s%s" "$c" $((j - i))
            done
            """,
        ],
    ),
}


def problems(language: str) -> dict[str, tuple[str, list[TestCase]]]:
    """Return the solution in a language and the tests of each problem."""
    programs = {}
    for name, (scaffold, inputs, answer, solutions) in _PROBLEMS.items():
        code = scaffold[language].replace("BODY", solutions[list(NUMBERS).index(language)])
        tests = []
        for text in inputs:
            argument: Any = [int(word) for word in text.split()] if scaffold is NUMBERS else text
            tests.append(TestCase(f"{text}\n", str(answer(argument))))
        programs[name] = code, tests
    return programs
