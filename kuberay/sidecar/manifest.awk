# Reads a manifest, given as bytes in decimal (od -An -v -tu1), and says what it lists or all that speaks against it.
#
# It prints one line for each fact:
#   problem <text>             why the manifest is refused; then the exit status is 1
#   version <model_version>
#   interval <seconds>         sidecar.poll_interval_seconds
#   file <sha256> <path>       one for each file, in the order of the manifest
#   end                        the last line, when there are no problems
# A path and a text are escaped for `printf %b`: whatever is not plain ASCII stands as \0ooo, a byte in octal.
#
# The rules are those of the server (serve_app/domain/manifest.py), and tests hold both to one table. It is stricter in:
#   - model_version: a plain version, for it names a directory; 'iris:3' is for registries;
#   - paths outside ASCII: letters and signs of one spelling only (no combining marks), see `is_printable`;
#   - paths that would collide with the sidecar's own names in the staging directory;
#   - created_at: 2026-01-30, or that with T09:00[:00[.5]] and Z or +00:00, from 1970 on;
#   - numbers of more than 4300 characters; keys and names that differ only after 1100 characters.
#
# Any awk will do: mawk, gawk, busybox. Nothing of a manifest is ever run, or kept beyond what the rules look at.

function next_byte() {
    if (at_field >= n_fields) {
        if ((getline) <= 0) {
            byte = -1
            return
        }
        n_fields = NF
        at_field = 0
        if (NF == 0) {
            next_byte()
            return
        }
    }
    byte = $(++at_field) + 0
    position++
}

function refuse(text) {
    print "problem " text
    n_problems++
}

function give_up(text) {
    refuse(text)
    is_over = 1
    exit 1
}

function not_json(found) {
    give_up("expected a JSON document in UTF-8, found " found " at byte " position)
}

function skip_space() {
    while (byte == 32 || byte == 10 || byte == 13 || byte == 9) next_byte()
}

# --- what stands in a document ----------------------------------------------------------------------------------------

function read_value(path, depth) {
    skip_space()
    if (byte == 123) read_object(path, depth + 1)
    else if (byte == 91) read_array(path, depth + 1)
    else if (byte == 34) {
        read_string()
        keep(path, "string", text)
    } else if (byte == 45 || (byte >= 48 && byte <= 57)) read_number(path)
    else read_word(path)
    skip_space()
}

function keep(path, what, found) {
    if (path ~ /^\t(metrics|training)\t/) return
    kind[path] = what
    value[path] = found
}

function read_object(path, depth,   key) {
    if (depth > 32) give_up("expected at most 32 levels of nesting, found more")
    keep(path, "object", "")
    count[path] = 0
    next_byte()
    skip_space()
    if (byte == 125) {
        next_byte()
        return
    }
    while (1) {
        skip_space()
        if (byte != 34) not_json("no name of a member")
        read_string()
        key = text
        if ((path "\t" key) in seen) refuse("expected each key once, found '" shown(key) "' twice")
        else member[path, ++count[path]] = key
        seen[path "\t" key] = 1
        skip_space()
        if (byte != 58) not_json("no ':'")
        next_byte()
        read_value(path "\t" key, depth)
        if (byte == 125) break
        if (byte != 44) not_json("neither ',' nor '}'")
        next_byte()
    }
    next_byte()
}

function read_array(path, depth,   i) {
    if (depth > 32) give_up("expected at most 32 levels of nesting, found more")
    keep(path, "array", "")
    next_byte()
    skip_space()
    i = 0
    if (byte != 93) {
        while (1) {
            read_value(path "\t" (++i), depth)
            if (byte == 93) break
            if (byte != 44) not_json("neither ',' nor ']'")
            next_byte()
        }
    }
    count[path] = i
    next_byte()
}

function read_word(path,   word) {
    word = ""
    while (((byte >= 97 && byte <= 122) || (byte >= 65 && byte <= 90)) && length(word) < 9) {
        word = word letter[byte]
        next_byte()
    }
    if (word == "true" || word == "false" || word == "null") keep(path, word, word)
    else not_json(word == "" ? "no value" : "'" word "'")
}

function read_number(path,   digits) {
    digits = ""
    while (byte in in_number) {
        digits = digits in_number[byte]
        if (length(digits) > 4300) not_json("a number of more than 4300 characters")
        next_byte()
    }
    if (digits !~ /^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$/) not_json("'" substr(digits, 1, 40) "'")
    if (digits ~ /[.eE]/ && is_infinite(digits)) refuse("expected a finite number, found " substr(digits, 1, 40))
    keep(path, "number", digits)
}

function is_infinite(digits,   size) {
    size = digits + 0
    if (size < 0) size = -size
    return size > 1.7976931348623157e308
}

function read_string() {
    text = ""
    n_chars = 0
    next_byte()
    while (byte != 34) {
        if (byte < 0) not_json("the end")
        if (byte < 32) not_json("a control character in a string")
        if (byte == 92) read_escape()
        else if (byte < 128) add_char(byte)
        else read_utf8()
        next_byte()
    }
    next_byte()
}

# The byte that is read last is the last one of the character; so it is for an escape.
function read_utf8(   lead, code, n, low, high) {
    lead = byte
    low = 128
    high = 191
    if (lead >= 194 && lead <= 223) { n = 1; code = lead - 192 }
    else if (lead >= 224 && lead <= 239) { n = 2; code = lead - 224 }
    else if (lead >= 240 && lead <= 244) { n = 3; code = lead - 240 }
    else not_json("no UTF-8")
    if (lead == 224) low = 160
    if (lead == 237) high = 159
    if (lead == 240) low = 144
    if (lead == 244) high = 143
    while (n-- > 0) {
        next_byte()
        if (byte < low || byte > high) not_json("no UTF-8")
        code = code * 64 + byte - 128
        low = 128
        high = 191
    }
    add_char(code)
}

function read_escape(   code, low) {
    next_byte()
    if (byte in escaped) {
        add_char(escaped[byte])
        return
    }
    if (byte != 117) not_json("no such escape")
    code = read_hex()
    if (code >= 56320 && code <= 57343) not_json("half a surrogate pair")
    if (code >= 55296 && code <= 56319) {
        next_byte()
        if (byte != 92) not_json("half a surrogate pair")
        next_byte()
        if (byte != 117) not_json("half a surrogate pair")
        low = read_hex()
        if (low < 56320 || low > 57343) not_json("half a surrogate pair")
        code = 65536 + (code - 55296) * 1024 + low - 56320
    }
    add_char(code)
}

function read_hex(   i, code) {
    code = 0
    for (i = 0; i < 4; i++) {
        next_byte()
        if (!(byte in hex)) not_json("no hexadecimal digit")
        code = code * 16 + hex[byte]
    }
    return code
}

# Only the start of a long string is kept: no rule needs more, and appending to a long one is slow.
function add_char(code) {
    if (++n_chars > 1100) return
    if (code >= 32 && code < 127 && code != 92) text = text letter[code]
    else if (code < 128) text = text octal(code)
    else if (code < 2048) text = text octal(192 + int(code / 64)) octal(128 + code % 64)
    else if (code < 65536) {
        text = text octal(224 + int(code / 4096)) octal(128 + int(code / 64) % 64) octal(128 + code % 64)
    } else {
        text = text octal(240 + int(code / 262144)) octal(128 + int(code / 4096) % 64)
        text = text octal(128 + int(code / 64) % 64) octal(128 + code % 64)
    }
}

function octal(number) {
    return sprintf("\\0%03o", number)
}

# --- what the text of a string is -------------------------------------------------------------------------------------

# Says whether every character of an escaped text shows as itself and has one spelling. The letters of scripts that
# need combining marks are left out on purpose: two spellings of one name are then impossible.
function is_printable(escaped_text,   rest, code, n) {
    rest = escaped_text
    gsub(/\\0134/, "", rest) # a backslash is printable; paths refuse it by themselves
    while (match(rest, /\\0[0-7][0-7][0-7]/)) {
        rest = substr(rest, RSTART)
        code = octal_value(rest)
        n = code < 128 ? 0 : code < 224 ? 1 : code < 240 ? 2 : 3
        code = n == 0 ? code : n == 1 ? code - 192 : n == 2 ? code - 224 : code - 240
        rest = substr(rest, 6)
        while (n-- > 0) {
            code = code * 64 + octal_value(rest) - 128
            rest = substr(rest, 6)
        }
        if (!is_letter_or_sign(code)) return 0
    }
    return 1
}

function octal_value(escaped_text) {
    return substr(escaped_text, 3, 1) * 64 + substr(escaped_text, 4, 1) * 8 + substr(escaped_text, 5, 1)
}

function is_letter_or_sign(code,   i) {
    for (i = 1; i <= n_ranges; i += 2) {
        if (code < range[i]) return 0
        if (code <= range[i + 1]) return 1
    }
    return 0
}

function shown(escaped_text) {
    if (!is_printable(escaped_text)) gsub(/\\0[0-7][0-7][0-7]/, "?", escaped_text)
    if (length(escaped_text) > 160) {
        escaped_text = substr(escaped_text, 1, 160)
        sub(/\\[0-7]?[0-7]?[0-7]?$/, "", escaped_text)
        escaped_text = escaped_text "..."
    }
    return escaped_text
}

function n_bytes(escaped_text) {
    gsub(/\\0[0-7][0-7][0-7]/, "x", escaped_text)
    return length(escaped_text)
}

function found_at(path) {
    if (!(path in kind)) return "none"
    if (kind[path] == "string") return "'" shown(value[path]) "'"
    if (kind[path] == "object" || kind[path] == "array") return "an " kind[path]
    return substr(value[path], 1, 40)
}

# --- the rules --------------------------------------------------------------------------------------------------------

function problem_with_path(path,   parts, n, i, expected) {
    expected = "expected a plain relative path such as 'models/a/model.joblib', found "
    if (path == "") return expected "an empty one"
    if (!is_printable(path)) return expected "an unprintable character in '" shown(path) "', or one with two spellings"
    if (path ~ /\\0134/) return expected "a backslash in '" shown(path) "'"
    if (path ~ /^\//) return expected "the absolute path '" shown(path) "'"
    n = split(path, parts, "/")
    for (i = 1; i <= n; i++) {
        if (parts[i] == "..") return expected "'" shown(path) "', which leaves the bundle"
        if (parts[i] == "" || parts[i] == ".") return expected "'" shown(path) "', which has an empty or '.' part"
        if (n_bytes(parts[i]) > 255) return expected "a part of more than 255 bytes in '" shown(path) "'"
    }
    if (n_bytes(path) > 1024 && n_characters(path) > 1024) return expected "one of more than 1024 characters"
    return ""
}

function n_characters(escaped_text) {
    gsub(/\\02[0-7][0-7]/, "", escaped_text) # what follows the first byte of a character: 0200 to 0277
    return n_bytes(escaped_text)
}

function problem_with_version(version) {
    if (version !~ /^[A-Za-z0-9][A-Za-z0-9._-]*$/ || length(version) > 128) {
        return "expected a version of 1 to 128 letters, digits, '.', '_' or '-', the first a letter or a digit"
    }
    if (tolower(version) ~ /^(current|staging)$/) return "expected a version, found a reserved name"
    return ""
}

# `<model>:<version>`, the model's name percent-encoded wherever it has to be and nowhere else.
function is_qualified(name,   model, i, code, low) {
    i = length(name)
    while (i > 0 && substr(name, i, 1) != ":") i--
    if (problem_with_version(substr(name, i + 1)) != "") return 0
    if (i == 0) return 1
    model = substr(name, 1, i - 1)
    if (model !~ /^[A-Za-z0-9._~%-]+$/) return 0
    while ((i = index(model, "%")) > 0) {
        if (substr(model, i + 1, 2) !~ /^[0-7][0-9A-F]$/) return 0
        low = index("0123456789ABCDEF", substr(model, i + 2, 1)) - 1
        code = substr(model, i + 1, 1) * 16 + low
        if (letter[code] ~ /^[A-Za-z0-9._~-]$/) return 0
        model = substr(model, i + 3)
    }
    return 1
}

function is_moment(moment,   date, clock, offset, year, month, day, days) {
    date = substr(moment, 1, 10)
    if (date !~ /^[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]$/) return 0
    year = substr(date, 1, 4) + 0
    month = substr(date, 6, 2) + 0
    day = substr(date, 9, 2) + 0
    if (year < 1970 || year > 9998 || month < 1 || month > 12) return 0
    days = substr("312831303130313130313031", 2 * month - 1, 2) + 0
    if (month == 2 && year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)) days = 29
    if (day < 1 || day > days) return 0
    if (moment == date) return 1
    clock = substr(moment, 11)
    if (match(clock, /(Z|[+-][0-9][0-9]:[0-9][0-9])$/)) {
        offset = substr(clock, RSTART)
        clock = substr(clock, 1, RSTART - 1)
        if (offset != "Z" && (substr(offset, 2, 2) > 23 || substr(offset, 5, 2) > 59)) return 0
    }
    if (clock !~ /^[T ][0-9][0-9]:[0-9][0-9](:[0-9][0-9]([.][0-9]+)?)?$/) return 0
    return substr(clock, 2, 2) + 0 < 24 && substr(clock, 5, 2) + 0 < 60 && substr(clock, 8, 2) + 0 < 60
}

# Says whether an optional part is there to be looked at: neither missing nor null.
function is_given(path) {
    return path in kind && kind[path] != "null"
}

function expect(path, what, label) {
    if ((path in kind) && kind[path] == what) return 1
    refuse(label ": expected " (what == "object" || what == "array" ? "an " : "a ") what ", found " found_at(path))
    return 0
}

function expect_keys(path, allowed, label,   i) {
    for (i = 1; i <= count[path]; i++) {
        if (index(" " allowed " ", " " member[path, i] " ") == 0 || member[path, i] ~ / /) {
            refuse(label "expected one of the keys " allowed ", found '" shown(member[path, i]) "'")
        }
    }
}

function check_name(path, label,   problem) {
    if (!expect(path, "string", label)) return
    problem = problem_with_path(value[path])
    if (problem == "" && value[path] ~ /\//) problem = "found '" shown(value[path]) "', which has a '/'"
    if (problem != "") refuse(label ": expected a name such as 'regression'; " problem)
}

function check_number(path, label, is_zero_fine) {
    if (!expect(path, "number", label)) return
    if (is_infinite(value[path])) refuse(label ": expected a finite number, found " substr(value[path], 1, 40))
    else if (value[path] + 0 < 0 || (!is_zero_fine && value[path] + 0 == 0)) {
        refuse(label ": expected " (is_zero_fine ? "0 or more" : "more than 0") ", found " substr(value[path], 1, 40))
    }
}

function check_files(   i, j, n, path, parts, above, problem, digest, under) {
    under = "\tsha256"
    if (!expect(under, "object", "sha256")) return
    if (count[under] == 0) refuse("sha256: expected at least one file, found none")
    for (i = 1; i <= count[under]; i++) {
        path = member[under, i]
        problem = problem_with_path(path)
        if (problem == "" && path ~ /^(READY|rejected-[^\/]*|[.]promoting)(\/|$)/) {
            problem = "expected a path that is free for a bundle, found '" shown(path) "', which the sidecar uses"
        }
        if (problem == "" && path == manifest_name) problem = "expected other files than the manifest, found it"
        if (problem != "") refuse("sha256: " problem)
        if (!expect(under "\t" path, "string", "sha256 of " shown(path))) continue
        digest = tolower(value[under "\t" path])
        if (length(digest) != 64 || digest !~ /^[0-9a-f]+$/) {
            refuse("sha256 of " shown(path) ": expected 64 hexadecimal digits, found " found_at(under "\t" path))
        }
        n = split(path, parts, "/")
        above = parts[1]
        for (j = 2; j <= n; j++) {
            if ((under "\t" above) in kind) {
                refuse("sha256: expected '" shown(above) "' to be a file, found '" shown(path) "' below it")
            }
            above = above "/" parts[j]
        }
    }
}

function check_columns(side,   i, j, path, name, label, names) {
    path = "\tsignature\t" side
    if (!expect(path, "array", "signature." side)) return
    if (count[path] == 0) refuse("signature." side ": expected at least one column, found none")
    for (i = 1; i <= count[path]; i++) {
        label = "signature." side "." (i - 1)
        if (!expect(path "\t" i, "object", label)) continue
        expect_keys(path "\t" i, "name dtype unit description shape", label ": ")
        name = path "\t" i "\tname"
        if (expect(name, "string", label ".name")) {
            if (value[name] in names) {
                refuse("signature." side ": expected each name once, found '" shown(value[name]) "' twice")
            }
            names[value[name]] = 1
        }
        check_choice(path "\t" i "\tdtype", "float64 float32 int64 int32 bool string", label ".dtype", 0)
        if (is_given(path "\t" i "\tunit")) expect(path "\t" i "\tunit", "string", label ".unit")
        if (is_given(path "\t" i "\tdescription")) expect(path "\t" i "\tdescription", "string", label ".description")
        if (!((path "\t" i "\tshape") in kind)) continue
        if (!expect(path "\t" i "\tshape", "array", label ".shape")) continue
        for (j = 1; j <= count[path "\t" i "\tshape"]; j++) {
            name = path "\t" i "\tshape\t" j
            if (kind[name] != "number" || value[name] !~ /^[1-9][0-9]*$/) {
                refuse(label ".shape: expected whole numbers from 1 on, found " found_at(name))
            }
        }
    }
}

function check_choice(path, allowed, label, is_null_fine) {
    if (!(path in kind) || (is_null_fine && kind[path] == "null")) return
    if (kind[path] != "string" || value[path] ~ / / || index(" " allowed " ", " " value[path] " ") == 0) {
        refuse(label ": expected one of " allowed ", found " found_at(path))
    }
}

function check_golden(   path) {
    if (!expect("\tgolden", "object", "golden")) return
    expect_keys("\tgolden", "path rtol atol", "golden: ")
    path = "golden.json"
    if ("\tgolden\tpath" in kind && expect("\tgolden\tpath", "string", "golden.path")) path = value["\tgolden\tpath"]
    if (!(("\tsha256\t" path) in kind)) {
        refuse("expected sha256 to list the golden samples '" shown(path) "', found no such entry")
    }
    if ("\tgolden\trtol" in kind) check_number("\tgolden\trtol", "golden.rtol", 1)
    if ("\tgolden\tatol" in kind) check_number("\tgolden\tatol", "golden.atol", 1)
}

function check_required(   problem) {
    if (expect("\tmodel_version", "string", "model_version")) {
        problem = problem_with_version(value["\tmodel_version"])
        if (problem != "") refuse("model_version: " problem ", found " found_at("\tmodel_version"))
    }
    check_name("\tmodels_type", "models_type")
    if (expect("\tcreated_at", "string", "created_at") && !is_moment(value["\tcreated_at"])) {
        refuse("created_at: expected a time such as '2026-01-30T09:00:00Z', found " found_at("\tcreated_at"))
    }
    check_files()
}

function check_optional(   i, key, layouts) {
    if (is_given("\tsidecar") && expect("\tsidecar", "object", "sidecar")) {
        expect_keys("\tsidecar", "poll_interval_seconds", "sidecar: ")
        if ("\tsidecar\tpoll_interval_seconds" in kind) {
            check_number("\tsidecar\tpoll_interval_seconds", "sidecar.poll_interval_seconds", 0)
        }
    }
    if ("\tformat_version" in kind && (kind["\tformat_version"] != "number" || value["\tformat_version"] != "1")) {
        refuse("format_version: expected the whole number 1, found " found_at("\tformat_version"))
    }
    if (is_given("\tfamily")) check_name("\tfamily", "family")
    if (is_given("\tloader")) check_name("\tloader", "loader")
    if (is_given("\tsignature") && expect("\tsignature", "object", "signature")) {
        expect_keys("\tsignature", "inputs outputs input_layout output_layout", "signature: ")
        check_columns("inputs")
        check_columns("outputs")
        layouts = "named positional tensor vector exact free"
        check_choice("\tsignature\tinput_layout", layouts, "signature.input_layout", 1)
        check_choice("\tsignature\toutput_layout", "values rows records", "signature.output_layout", 1)
    }
    if (is_given("\tgolden")) check_golden()
    if (is_given("\tenvironment") && expect("\tenvironment", "object", "environment")) {
        for (i = 1; i <= count["\tenvironment"]; i++) {
            key = member["\tenvironment", i]
            expect("\tenvironment\t" key, "string", "environment." shown(key))
        }
    }
    if (is_given("\tmetrics")) expect("\tmetrics", "object", "metrics")
    if (is_given("\ttraining")) expect("\ttraining", "object", "training")
    if (is_given("\tparent_version") && expect("\tparent_version", "string", "parent_version")) {
        if (!is_qualified(value["\tparent_version"])) {
            refuse("parent_version: expected a version, found " found_at("\tparent_version"))
        }
    }
}

function prepare(   i, digits, n, parts) {
    for (i = 32; i < 127; i++) letter[i] = sprintf("%c", i)
    digits = "0123456789abcdef"
    for (i = 0; i < 16; i++) {
        if (i < 10) hex[48 + i] = i
        else hex[97 + i - 10] = hex[65 + i - 10] = i
    }
    for (i = 48; i < 58; i++) in_number[i] = letter[i]
    in_number[43] = "+"; in_number[45] = "-"; in_number[46] = "."; in_number[69] = "E"; in_number[101] = "e"
    escaped[34] = 34; escaped[92] = 92; escaped[47] = 47; escaped[98] = 8
    escaped[102] = 12; escaped[110] = 10; escaped[114] = 13; escaped[116] = 9
    # Latin, Greek, Cyrillic, Hebrew, Arabic, more Latin, signs, kana, Chinese, Korean; ASCII never comes here escaped.
    n_ranges = split("161 172 174 767 902 902 904 906 908 908 910 929 931 993 1024 1153 1162 1327 1488 1514 " \
        "1569 1594 1601 1610 7680 7935 8208 8231 8240 8286 12353 12438 12449 12538 19968 40943 44032 55203", parts, " ")
    for (i = 1; i <= n_ranges; i++) range[i] = parts[i] + 0
}

BEGIN {
    if (manifest_name == "") manifest_name = "manifest.json"
    prepare()
    next_byte()
    read_value("", 0)
    if (byte != -1) not_json("more after the end")
    if (kind[""] != "object") give_up("expected a JSON object, found " found_at(""))
    expect_keys("", "model_version models_type created_at sha256 sidecar format_version family loader signature " \
        "golden environment metrics training parent_version", "")
    check_required()
    check_optional()
    if (n_problems > 0) exit 1
    print "version " value["\tmodel_version"]
    if ("\tsidecar\tpoll_interval_seconds" in kind) print "interval " value["\tsidecar\tpoll_interval_seconds"]
    for (i = 1; i <= count["\tsha256"]; i++) {
        path = member["\tsha256", i]
        print "file " tolower(value["\tsha256\t" path]) " " path
    }
    print "end"
    exit 0
}
