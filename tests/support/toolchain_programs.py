"""The same programs in each language with a toolchain, for `test_toolchains.py`."""

from __future__ import annotations

SUM = {
    "c": '#include <stdio.h>\nint main(void) { long a, b; scanf("%ld %ld", &a, &b); printf("%ld\\n", a + b); }',
    "cpp": "#include <iostream>\nint main() { long a, b; std::cin >> a >> b; std::cout << a + b << '\\n'; }",
    "go": 'package main\nimport "fmt"\nfunc main() { var a, b int; fmt.Scan(&a, &b); fmt.Println(a + b) }',
    "rust": (
        "use std::io::Read;\nfn main() { let mut s = String::new(); std::io::stdin().read_to_string(&mut s).unwrap();\n"
        'println!("{}", s.split_whitespace().map(|n| n.parse::<i64>().unwrap()).sum::<i64>()); }'
    ),
    "java": (
        "import java.util.Scanner;\npublic class Main { public static void main(String[] a) {\n"
        "Scanner s = new Scanner(System.in); System.out.println(s.nextLong() + s.nextLong()); } }"
    ),
    "bash": "read -r a b\necho $((a + b))",
}
"""Print the sum of the two numbers on stdin."""

ARGUMENTS = {
    "c": '#include <stdio.h>\nint main(int n, char **v) { for (int i = 1; i < n; i++) printf("[%s]", v[i]); }',
    "cpp": '#include <iostream>\nint main(int n, char **v) { for (int i = 1; i < n; i++) std::cout << "[" << v[i] << "]"; }',
    "go": 'package main\nimport ("fmt"; "os")\nfunc main() { for _, a := range os.Args[1:] { fmt.Printf("[%s]", a) } }',
    "rust": 'fn main() { for a in std::env::args().skip(1) { print!("[{a}]"); } }',
    "java": 'class Main { public static void main(String[] v) { for (String a : v) System.out.print("[" + a + "]"); } }',
    "bash": "printf '[%s]' \"$@\"",
}
"""Print each argument in brackets."""

COPY = {
    "c": (
        '#include <stdio.h>\nint main(void) { FILE *i = fopen("data/in.txt", "r"), *o = fopen("out.txt", "w"); int c;\n'
        "while ((c = getc(i)) != EOF) putc(c, o); fclose(o); }"
    ),
    "cpp": (
        '#include <fstream>\nint main() { std::ifstream i("data/in.txt"); std::ofstream("out.txt") << i.rdbuf(); }'
    ),
    "go": (
        'package main\nimport "os"\nfunc main() { b, e := os.ReadFile("data/in.txt"); if e != nil { panic(e) }\n'
        'os.WriteFile("out.txt", b, 0o644) }'
    ),
    "rust": 'fn main() { std::fs::copy("data/in.txt", "out.txt").unwrap(); }',
    "java": (
        "import java.nio.file.*;\nclass Main { public static void main(String[] a) throws Exception {\n"
        'Files.copy(Path.of("data/in.txt"), Path.of("out.txt")); } }'
    ),
    "bash": "cat data/in.txt > out.txt",
}
"""Copy the file data/in.txt to out.txt."""

EXIT = {
    "c": '#include <stdio.h>\n#include <stdlib.h>\nint main(void) { fputs("bad\\n", stderr); exit(3); }',
    "cpp": '#include <iostream>\nint main() { std::cerr << "bad\\n"; return 3; }',
    "go": 'package main\nimport ("fmt"; "os")\nfunc main() { fmt.Fprintln(os.Stderr, "bad"); os.Exit(3) }',
    "rust": 'fn main() { eprintln!("bad"); std::process::exit(3); }',
    "java": 'class Main { public static void main(String[] a) { System.err.println("bad"); System.exit(3); } }',
    "bash": "echo bad >&2\nexit 3",
}
"""Print "bad" to stderr, and exit with code 3."""

LOOP = {
    "c": '#include <stdio.h>\nint main(void) { puts("before"); fflush(stdout); for (;;); }',
    "cpp": '#include <iostream>\nint main() { std::cout << "before" << std::endl; for (volatile int i = 0;;) i = 1; }',
    "go": 'package main\nimport "fmt"\nfunc main() { fmt.Println("before"); for {} }',
    "rust": 'fn main() { println!("before"); loop { std::hint::spin_loop(); } }',
    "java": 'class Main { public static void main(String[] a) { System.out.println("before"); for (;;); } }',
    "bash": "echo before; while :; do :; done",
}
"""Print "before", and loop forever."""

FLOOD = {
    "c": '#include <stdio.h>\nint main(void) { for (;;) puts("0123456789"); }',
    "cpp": '#include <iostream>\nint main() { for (;;) std::cout << "0123456789\\n"; }',
    "go": 'package main\nimport "fmt"\nfunc main() { for { fmt.Println("0123456789") } }',
    "rust": 'fn main() { loop { println!("0123456789"); } }',
    "java": 'class Main { public static void main(String[] a) { for (;;) System.out.println("0123456789"); } }',
    "bash": "while :; do echo 0123456789; done",
}
"""Print forever."""

MEMORY = {
    "c": (
        "#include <stdlib.h>\n#include <string.h>\n"
        "int main(void) { for (;;) { char *p = malloc(1 << 20); memset(p, 1, 1 << 20); } }"
    ),
    "cpp": "#include <vector>\nint main() { std::vector<int> v; for (;;) v.push_back(1); }",
    "go": "package main\nvar kept [][]byte\nfunc main() { for { b := make([]byte, 1<<20); for i := range b { b[i] = 1 }; kept = append(kept, b) } }",
    "rust": "fn main() { let mut v: Vec<u64> = Vec::new(); loop { v.push(1); } }",
    "java": (
        "import java.util.*;\nclass Main { public static void main(String[] a) {\n"
        "List<byte[]> kept = new ArrayList<>(); for (;;) kept.add(new byte[1 << 20]); } }"
    ),
    "bash": 'x=0123456789; while :; do x="$x$x"; done',
}
"""Allocate memory forever."""

BROKEN = {
    "c": ("int main(void) {\n  return 1 +;\n}", 2, 13),
    "cpp": ("int main() {\n  return 1 +;\n}", 2, 13),
    "go": ("package main\nfunc main() {\n\tx := 1 +\n}\n", 4, 1),
    "rust": ("fn main() {\n    let x = ;\n}", 2, 13),
    "java": ("class Main {\n  int x = ;\n}", 2, 11),
    "bash": ("echo never\nif true; then\nfi\n", 3, None),
}
"""Programs that do not compile, with the line and the column of the first error."""

RAISES = {
    "cpp": (
        '#include <stdexcept>\nint main() { throw std::runtime_error("boom"); }',
        "std::runtime_error",
        "boom",
    ),
    "go": ('package main\nfunc main() { panic("boom") }', "panic", "boom"),
    "rust": ('fn main() { panic!("boom"); }', "panic", "boom"),
    "java": (
        'class Main { public static void main(String[] a) { throw new IllegalStateException("boom"); } }',
        "java.lang.IllegalStateException",
        "boom",
    ),
}
"""Programs that raise an exception, with its name and its message."""

STREAM = {
    "c": (
        "#include <stdio.h>\n#include <unistd.h>\n"
        'int main(void) { puts("one"); fflush(stdout); char c; read(0, &c, 1); for (;;) pause(); }'
    ),
    "cpp": '#include <iostream>\n#include <unistd.h>\nint main() { std::cout << "one" << std::endl; for (;;) pause(); }',
    "go": 'package main\nimport ("fmt"; "time")\nfunc main() { fmt.Println("one"); time.Sleep(time.Hour) }',
    "rust": 'fn main() { println!("one"); std::thread::sleep(std::time::Duration::from_secs(3600)); }',
    "java": (
        "class Main { public static void main(String[] a) throws Exception {\n"
        'System.out.println("one"); Thread.sleep(3600_000); } }'
    ),
    "bash": "echo one; sleep 3600",
}
"""Print "one", and wait until the program is ended."""
