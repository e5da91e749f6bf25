"""The engine `deno` for JavaScript and TypeScript: a warm Deno process without permissions for each program."""
