from faasrt.cli import main

if __name__ == "__main__":
    main()
