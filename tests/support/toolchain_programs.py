"""The same programs in each language with a toolchain, for `test_toolchains.py`.

The last part has three small problems. A solution replaces BODY in a program that reads all numbers of stdin into `a`,
or its first line into `s`.
"""

from __future__ import annotations

from collections.abc import Callable
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


LISTS = ["5 3 8 8 -2 7", "1", "10 9 8", "4 6 4 12 100 1000000000"]
COUNTS = ["1", "10", "97", "500"]
WORDS = ["hello world", "level", "a", "step on no pets", "aaabccdd eee"]

# The scaffold, the inputs, the answer in Python, and the solutions: C, C++, Go, Rust, Java and Bash.
_PROBLEMS: dict[str, tuple[dict[str, str], list[str], Callable[[Any], object], list[str]]] = {
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
