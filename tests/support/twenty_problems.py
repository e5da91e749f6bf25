"""Twenty small problems with solutions in six languages.

A solution replaces BODY in a program that reads all numbers of stdin into `a`, or its first line into `s`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate, groupby
from typing import Any

from faasrt import TestCase

NUMBERS = {
    "c": "#include <stdio.h>\n#include <stdlib.h>\ntypedef long long L;\nstatic L a[1000]; int n;\n"
    "static int less(const void *x, const void *y) { L p = *(L *)x, q = *(L *)y; return (p > q) - (p < q); }\n"
    'int main(void) { (void)less; while (scanf("%lld", &a[n]) == 1) n++;\nBODY\nreturn 0; }',
    "cpp": "#include <algorithm>\n#include <iostream>\n#include <numeric>\n#include <set>\n#include <vector>\n"
    "using namespace std; typedef long long L;\n"
    "int main() { vector<L> a; for (L x; cin >> x;) a.push_back(x); int n = a.size(); (void)n;\nBODY\n}",
    "go": 'package main\nimport ("bufio"; "fmt"; "os"; "sort"; "strings")\nvar _, _ = sort.Ints, strings.Fields\n'
    "func main() { in := bufio.NewReader(os.Stdin); a := []int{}\n"
    "for { var x int; if _, e := fmt.Fscan(in, &x); e != nil { break }; a = append(a, x) }\nn := len(a); _ = n\nBODY\n}",
    "rust": "#![allow(unused)]\nuse std::io::Read;\nfn main() { let mut t = String::new();\n"
    "std::io::stdin().read_to_string(&mut t).unwrap();\n"
    "let mut a: Vec<i64> = t.split_whitespace().map(|x| x.parse().unwrap()).collect();\nBODY\n}",
    "java": "import java.util.*;\nimport java.util.stream.*;\npublic class Main { public static void main(String[] none) {\n"
    "long[] a = new Scanner(System.in).tokens().mapToLong(Long::parseLong).toArray(); int n = a.length;\nBODY\n} }",
    "bash": "read -r -d '' -a a\nn=${#a[@]}\nBODY",
}
TEXT = {
    "c": "#include <ctype.h>\n#include <stdio.h>\n#include <string.h>\nint main(void) { static char s[1000];\n"
    'fgets(s, 1000, stdin); s[strcspn(s, "\\n")] = 0; int n = strlen(s);\nBODY\nreturn 0; }',
    "cpp": "#include <algorithm>\n#include <iostream>\n#include <sstream>\nusing namespace std;\nint main() { string s; getline(cin, s);\nBODY\n}",
    "go": 'package main\nimport ("bufio"; "fmt"; "os"; "strings")\nvar _ = strings.Fields\n'
    'func main() { s, _ := bufio.NewReader(os.Stdin).ReadString(10); s = strings.TrimRight(s, "\\n")\nBODY\n}',
    "rust": "#![allow(unused)]\nfn main() { let mut t = String::new(); std::io::stdin().read_line(&mut t).unwrap();\n"
    "let s = t.trim_end_matches('\\n');\nBODY\n}",
    "java": "import java.util.*;\nimport java.util.stream.*;\npublic class Main { public static void main(String[] none) {\n"
    "String s = new Scanner(System.in).nextLine();\nBODY\n} }",
    "bash": "IFS= read -r s\nBODY",
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
    "sum": (NUMBERS, LISTS, sum, [
        'L r = 0; for (int i = 0; i < n; i++) r += a[i]; printf("%lld\\n", r);',
        "cout << accumulate(a.begin(), a.end(), 0LL) << endl;",
        "r := 0; for _, x := range a { r += x }; fmt.Println(r)",
        'println!("{}", a.iter().sum::<i64>());',
        "System.out.println(Arrays.stream(a).sum());",
        "r=0; for x in ${a[@]}; do ((r += x)); done; echo $r",
    ]),
    "maximum": (NUMBERS, LISTS, max, [
        'L r = a[0]; for (int i = 1; i < n; i++) if (a[i] > r) r = a[i]; printf("%lld\\n", r);',
        "cout << *max_element(a.begin(), a.end()) << endl;",
        "r := a[0]; for _, x := range a { if x > r { r = x } }; fmt.Println(r)",
        'println!("{}", a.iter().max().unwrap());',
        "System.out.println(Arrays.stream(a).max().getAsLong());",
        "r=${a[0]}; for x in ${a[@]}; do ((x > r)) && r=$x; done; echo $r",
    ]),
    "even numbers": (NUMBERS, LISTS, lambda a: sum(x % 2 == 0 for x in a), [
        'int r = 0; for (int i = 0; i < n; i++) r += a[i] % 2 == 0; printf("%d\\n", r);',
        "cout << count_if(a.begin(), a.end(), [](L x) { return x % 2 == 0; }) << endl;",
        "r := 0; for _, x := range a { if x%2 == 0 { r++ } }; fmt.Println(r)",
        'println!("{}", a.iter().filter(|x| *x % 2 == 0).count());',
        "System.out.println(Arrays.stream(a).filter(x -> x % 2 == 0).count());",
        "r=0; for x in ${a[@]}; do ((x % 2 == 0)) && ((r += 1)); done; echo $r",
    ]),
    "backwards": (NUMBERS, LISTS, lambda a: " ".join(map(str, a[::-1])), [
        'for (int i = n - 1; i >= 0; i--) printf("%lld ", a[i]);',
        'reverse(a.begin(), a.end()); for (L x : a) cout << x << " ";',
        'for i := n - 1; i >= 0; i-- { fmt.Print(a[i], " ") }',
        'for x in a.iter().rev() { print!("{x} "); }',
        'for (int i = n - 1; i >= 0; i--) System.out.print(a[i] + " ");',
        "for ((i = n - 1; i >= 0; i--)); do printf '%s ' ${a[i]}; done",
    ]),
    "sorted": (NUMBERS, LISTS, lambda a: " ".join(map(str, sorted(a))), [
        'qsort(a, n, sizeof a[0], less); for (int i = 0; i < n; i++) printf("%lld ", a[i]);',
        'sort(a.begin(), a.end()); for (L x : a) cout << x << " ";',
        'sort.Ints(a); fmt.Println(strings.Trim(fmt.Sprint(a), "[]"))',
        'a.sort(); for x in a { print!("{x} "); }',
        'Arrays.stream(a).sorted().forEach(x -> System.out.print(x + " "));',
        "printf '%s\\n' ${a[@]} | sort -n | tr '\\n' ' '",
    ]),
    "greatest common divisor": (NUMBERS, LISTS, lambda a: math.gcd(*a), [
        'L r = 0; for (int i = 0; i < n; i++) { L x = llabs(a[i]); while (x) { L t = r % x; r = x; x = t; } } printf("%lld\\n", r);',
        "L r = 0; for (L x : a) r = gcd(r, x); cout << r << endl;",
        "r := 0; for _, x := range a { if x < 0 { x = -x }; for x != 0 { r, x = x, r%x } }; fmt.Println(r)",
        'let mut r = 0i64; for x in a { let mut x = x.abs(); while x != 0 { (r, x) = (x, r % x); } } println!("{r}");',
        "long r = 0; for (long x : a) { x = Math.abs(x); while (x != 0) { long t = r % x; r = x; x = t; } } System.out.println(r);",
        "r=0; for x in ${a[@]}; do x=${x#-}; while ((x)); do ((t = r % x, r = x, x = t)); done; done; echo $r",
    ]),
    "fibonacci": (NUMBERS, COUNTS, lambda a: _fibonacci(a[0]), [
        'L x = 0, y = 1; while (a[0]--) { L t = (x + y) % 1000000007; x = y; y = t; } printf("%lld\\n", x);',
        "L x = 0, y = 1; while (a[0]--) { swap(x, y); y = (x + y) % 1000000007; } cout << x << endl;",
        "x, y := 0, 1; for i := 0; i < a[0]; i++ { x, y = y, (x+y)%1000000007 }; fmt.Println(x)",
        'let (mut x, mut y) = (0, 1); for _ in 0..a[0] { (x, y) = (y, (x + y) % 1_000_000_007); } println!("{x}");',
        "long x = 0, y = 1; while (a[0]-- > 0) { long t = (x + y) % 1000000007; x = y; y = t; } System.out.println(x);",
        "x=0 y=1; for ((i = 0; i < a[0]; i++)); do ((t = (x + y) % 1000000007, x = y, y = t)); done; echo $x",
    ]),
    "primes": (NUMBERS, COUNTS, lambda a: sum(all(x % d for d in range(2, x)) for x in range(2, a[0] + 1)), [
        'int r = 0; for (int x = 2; x <= a[0]; x++) { int d = 2; while (d < x && x % d) d++; r += d == x; } printf("%d\\n", r);',
        "vector<bool> no(a[0] + 1); int r = 0; for (int x = 2; x <= a[0]; x++) if (!no[x]) { r++; for (int y = x; y <= a[0]; y += x) no[y] = true; } cout << r << endl;",
        "r := 0; for x := 2; x <= a[0]; x++ { d := 2; for d < x && x%d != 0 { d++ }; if d == x { r++ } }; fmt.Println(r)",
        'println!("{}", (2..=a[0]).filter(|x| (2..*x).all(|d| x % d != 0)).count());',
        "System.out.println(LongStream.rangeClosed(2, a[0]).filter(x -> LongStream.range(2, x).noneMatch(d -> x % d == 0)).count());",
        "r=0; for ((x = 2; x <= a[0]; x++)); do for ((d = 2; d * d <= x && x % d; d++)); do :; done; ((d * d > x)) && ((r += 1)); done; echo $r",
    ]),
    "collatz": (NUMBERS, COUNTS, lambda a: _collatz(a[0]), [
        'int r = 0; for (L x = a[0]; x != 1; r++) x = x % 2 ? 3 * x + 1 : x / 2; printf("%d\\n", r);',
        "int r = 0; for (L x = a[0]; x != 1; ++r) x = x & 1 ? 3 * x + 1 : x >> 1; cout << r << endl;",
        "r := 0; for x := a[0]; x != 1; r++ { if x%2 == 0 { x /= 2 } else { x = 3*x + 1 } }; fmt.Println(r)",
        'let (mut x, mut r) = (a[0], 0); while x != 1 { x = if x % 2 == 0 { x / 2 } else { 3 * x + 1 }; r += 1; } println!("{r}");',
        "int r = 0; for (long x = a[0]; x != 1; r++) x = x % 2 == 0 ? x / 2 : 3 * x + 1; System.out.println(r);",
        "r=0; for ((x = a[0]; x != 1; r++)); do ((x = x % 2 ? 3 * x + 1 : x / 2)); done; echo $r",
    ]),
    "longest increasing run": (NUMBERS, LISTS, _longest_run, [
        'int r = 1, c = 1; for (int i = 1; i < n; i++) { c = a[i] > a[i - 1] ? c + 1 : 1; if (c > r) r = c; } printf("%d\\n", r);',
        "int r = 1, c = 1; for (int i = 1; i < n; i++) { c = a[i] > a[i - 1] ? c + 1 : 1; r = max(r, c); } cout << r << endl;",
        "r, c := 1, 1; for i := 1; i < n; i++ { if a[i] > a[i-1] { c++ } else { c = 1 }; r = max(r, c) }; fmt.Println(r)",
        'let (mut r, mut c) = (1, 1); for w in a.windows(2) { c = if w[1] > w[0] { c + 1 } else { 1 }; r = r.max(c); } println!("{r}");',
        "int r = 1, c = 1; for (int i = 1; i < n; i++) { c = a[i] > a[i - 1] ? c + 1 : 1; r = Math.max(r, c); } System.out.println(r);",
        "r=1 c=1; for ((i = 1; i < n; i++)); do ((c = a[i] > a[i - 1] ? c + 1 : 1, r = c > r ? c : r)); done; echo $r",
    ]),
    "largest subarray": (NUMBERS, LISTS, lambda a: max(accumulate(a, lambda best, x: max(best + x, x))), [
        'L r = a[0], c = a[0]; for (int i = 1; i < n; i++) { c = c > 0 ? c + a[i] : a[i]; if (c > r) r = c; } printf("%lld\\n", r);',
        "L r = a[0], c = 0; for (L x : a) { c = max(c + x, x); r = max(r, c); } cout << r << endl;",
        "r, c := a[0], 0; for _, x := range a { c = max(c+x, x); r = max(r, c) }; fmt.Println(r)",
        'let (mut r, mut c) = (a[0], 0); for x in a { c = x.max(c + x); r = r.max(c); } println!("{r}");',
        "long r = a[0], c = 0; for (long x : a) { c = Math.max(c + x, x); r = Math.max(r, c); } System.out.println(r);",
        "r=${a[0]} c=0; for x in ${a[@]}; do ((c = c > 0 ? c + x : x, r = c > r ? c : r)); done; echo $r",
    ]),
    "distinct numbers": (NUMBERS, LISTS, lambda a: len(set(a)), [
        'qsort(a, n, sizeof a[0], less); int r = 1; for (int i = 1; i < n; i++) r += a[i] != a[i - 1]; printf("%d\\n", r);',
        "cout << set<L>(a.begin(), a.end()).size() << endl;",
        "seen := map[int]bool{}; for _, x := range a { seen[x] = true }; fmt.Println(len(seen))",
        'println!("{}", a.iter().collect::<std::collections::HashSet<_>>().len());',
        "System.out.println(Arrays.stream(a).distinct().count());",
        "declare -A seen; for x in ${a[@]}; do seen[$x]=1; done; echo ${#seen[@]}",
    ]),
    "sum of digits": (NUMBERS, COUNTS, lambda a: sum(map(int, str(a[0]))), [
        'int r = 0; for (L x = a[0]; x; x /= 10) r += x % 10; printf("%d\\n", r);',
        "int r = 0; for (char c : to_string(a[0])) r += c - '0'; cout << r << endl;",
        "r := 0; for x := a[0]; x > 0; x /= 10 { r += x % 10 }; fmt.Println(r)",
        'println!("{}", a[0].to_string().chars().map(|c| c.to_digit(10).unwrap()).sum::<u32>());',
        "System.out.println(Long.toString(a[0]).chars().map(c -> c - '0').sum());",
        "r=0; for ((x = a[0]; x; x /= 10)); do ((r += x % 10)); done; echo $r",
    ]),
    "binary": (NUMBERS, COUNTS, lambda a: f"{a[0]:b}", [
        "char t[70]; int k = 0; for (L x = a[0]; x; x /= 2) t[k++] = '0' + x % 2; while (k) putchar(t[--k]);",
        'string t; for (L x = a[0]; x; x /= 2) t = char(48 + x % 2) + t; cout << t << endl;',
        'fmt.Printf("%b\\n", a[0])',
        'println!("{:b}", a[0]);',
        "System.out.println(Long.toBinaryString(a[0]));",
        "t=; for ((x = a[0]; x; x /= 2)); do t=$((x % 2))$t; done; echo $t",
    ]),
    "reversed text": (TEXT, WORDS, lambda s: s[::-1], [
        "while (n) putchar(s[--n]);",
        "reverse(s.begin(), s.end()); cout << s << endl;",
        "for i := len(s) - 1; i >= 0; i-- { fmt.Printf(\"%c\", s[i]) }",
        'println!("{}", s.chars().rev().collect::<String>());',
        "System.out.println(new StringBuilder(s).reverse());",
        'for ((i = ${#s} - 1; i >= 0; i--)); do printf %s "${s:i:1}"; done',
    ]),
    "palindrome": (TEXT, WORDS, lambda s: "yes" if s == s[::-1] else "no", [
        'int i = 0; while (i < n && s[i] == s[n - 1 - i]) i++; puts(i == n ? "yes" : "no");',
        'cout << (equal(s.begin(), s.end(), s.rbegin()) ? "yes" : "no") << endl;',
        'r := "yes"; for i := range s { if s[i] != s[len(s)-1-i] { r = "no" } }; fmt.Println(r)',
        'println!("{}", if s.chars().eq(s.chars().rev()) { "yes" } else { "no" });',
        'System.out.println(new StringBuilder(s).reverse().toString().equals(s) ? "yes" : "no");',
        'r=; for ((i = 0; i < ${#s}; i++)); do r=${s:i:1}$r; done; [ "$r" = "$s" ] && echo yes || echo no',
    ]),
    "vowels": (TEXT, WORDS, lambda s: sum(c in "aeiou" for c in s), [
        'int r = 0; for (int i = 0; i < n; i++) r += strchr("aeiou", s[i]) != 0; printf("%d\\n", r);',
        'cout << count_if(s.begin(), s.end(), [](char c) { return string("aeiou").find(c) != string::npos; }) << endl;',
        'r := 0; for _, c := range s { if strings.ContainsRune("aeiou", c) { r++ } }; fmt.Println(r)',
        'println!("{}", s.chars().filter(|c| "aeiou".contains(*c)).count());',
        'System.out.println(s.chars().filter(c -> "aeiou".indexOf(c) >= 0).count());',
        "t=${s//[^aeiou]/}; echo ${#t}",
    ]),
    "words": (TEXT, WORDS, lambda s: len(s.split()), [
        "int r = 0; for (int i = 0; i < n; i++) r += s[i] != ' ' && (i == 0 || s[i - 1] == ' '); printf(\"%d\\n\", r);",
        "istringstream in(s); int r = 0; for (string w; in >> w;) r++; cout << r << endl;",
        "fmt.Println(len(strings.Fields(s)))",
        'println!("{}", s.split_whitespace().count());',
        'System.out.println(s.split(" ").length);',
        "set -- $s; echo $#",
    ]),
    "caesar": (TEXT, WORDS, lambda s: "".join(chr((ord(c) - 94) % 26 + 97) if c.islower() else c for c in s), [
        "for (int i = 0; i < n; i++) putchar(islower(s[i]) ? (s[i] - 94) % 26 + 97 : s[i]);",
        "for (char &c : s) if (islower(c)) c = (c - 94) % 26 + 97; cout << s << endl;",
        'for _, c := range s { if c >= 97 && c <= 122 { c = (c-94)%26 + 97 }; fmt.Printf("%c", c) }',
        "println!(\"{}\", s.bytes().map(|c| if c.is_ascii_lowercase() { ((c - 94) % 26 + 97) as char } else { c as char }).collect::<String>());",
        "System.out.println(s.chars().map(c -> Character.isLowerCase(c) ? (c - 94) % 26 + 97 : c).mapToObj(c -> String.valueOf((char) c)).collect(Collectors.joining()));",
        'echo "$s" | tr a-z d-za-c',
    ]),
    "run lengths": (TEXT, WORDS, lambda s: "".join(f"{c}{len([*g])}" for c, g in groupby(s)), [
        'for (int i = 0, j; i < n; i = j) { for (j = i; s[j] == s[i]; j++); printf("%c%d", s[i], j - i); }',
        "for (size_t i = 0, j; i < s.size(); i = j) { j = min(s.find_first_not_of(s[i], i), s.size()); cout << s[i] << j - i; }",
        'for i, j := 0, 0; i < len(s); i = j { for j = i; j < len(s) && s[j] == s[i]; j++ { }; fmt.Printf("%c%d", s[i], j-i) }',
        'let b = s.as_bytes(); let mut i = 0; while i < b.len() { let j = (i..b.len()).find(|k| b[*k] != b[i]).unwrap_or(b.len()); print!("{}{}", b[i] as char, j - i); i = j; }',
        "for (int i = 0, j; i < s.length(); i = j) { for (j = i; j < s.length() && s.charAt(j) == s.charAt(i); j++); System.out.print(s.charAt(i) + \"\" + (j - i)); }",
        'for ((i = 0; i < ${#s}; i = j)); do c=${s:i:1}; for ((j = i; j < ${#s}; j++)); do [ "${s:j:1}" = "$c" ] || break; done; printf "%s%s" "$c" $((j - i)); done',
    ]),
}  # fmt: skip


def problems(language: str) -> dict[str, tuple[str, list[TestCase]]]:
    """Return the solution in a language and the tests of each problem."""
    found = {}
    for name, (scaffold, inputs, answer, solutions) in _PROBLEMS.items():
        code = scaffold[language].replace("BODY", solutions[list(NUMBERS).index(language)])
        tests = []
        for text in inputs:
            given: Any = [int(word) for word in text.split()] if scaffold is NUMBERS else text
            tests.append(TestCase(f"{text}\n", str(answer(given))))
        found[name] = code, tests
    return found
