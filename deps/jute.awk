# Turn zookeeper.jute, ZooKeeper's description of its records, into the C code that its client compiles.
#
#   awk -v part=h -f jute.awk zookeeper.jute > zookeeper.jute.h
#   awk -v part=c -f jute.awk zookeeper.jute > zookeeper.jute.c
#
# The declarations are those of ZooKeeper's own generator (org.apache.jute.compiler, in Java). Unlike its code, a vector whose
# length is nonsense or too much for memory fails to be read, and a record that is cut short has zeros in the rest.

# Last part of a dotted name.
function base(name) {
	sub(/.*\./, "", name)
	return name
}

# The name a type goes by in function names: Int, String, Stat, String_vector.
function suffix(type) {
	if (type ~ /^vector</)
		return suffix(element(type)) "_vector"
	return type in SUFFIX ? SUFFIX[type] : base(type)
}

function element(type) {
	return substr(type, 8, length(type) - 8)
}

function ctype(type) {
	return type in CTYPE ? CTYPE[type] : "struct " suffix(type)
}

# Records and vectors have functions of their own; the archive reads and writes the rest.
function on_archive(type) {
	return type in SUFFIX
}

function write_out(type, tag, member) {
	print "    rc = rc ? rc : " (on_archive(type) ? "out->" : "") "serialize_" suffix(type) "(out, \"" tag "\", &v->" member ");"
}

function read_in(type, tag, member) {
	print "    rc = rc ? rc : " (on_archive(type) ? "in->" : "") "deserialize_" suffix(type) "(in, \"" tag "\", &v->" member ");"
}

function vector(type,    e, s) {
	e = element(type)
	s = suffix(type)
	if (s in made)
		return
	made[s] = 1
	if (part == "h") {
		print "struct " s " {\n    int32_t count;\n    " ctype(e) " *data;\n\n};"
		print "int serialize_" s "(struct oarchive *out, const char *tag, struct " s " *v);"
		print "int deserialize_" s "(struct iarchive *in, const char *tag, struct " s " *v);"
		print "int allocate_" s "(struct " s " *v, int32_t len);"
		print "int deallocate_" s "(struct " s " *v);"
		return
	}
	print "int allocate_" s "(struct " s " *v, int32_t len) {"
	print "    v->count = 0;\n    v->data = 0;"
	print "    if (len > 0 && (v->data = calloc(len, sizeof(*v->data))))\n        v->count = len;"
	print "    return v->count == len ? 0 : -ENOMEM;\n}"
	print "int deallocate_" s "(struct " s " *v) {\n    int32_t i;"
	print "    for (i = 0; v->data && i < v->count; i++)\n        deallocate_" suffix(e) "(&v->data[i]);"
	print "    free(v->data);\n    v->data = 0;\n    return 0;\n}"
	print "int serialize_" s "(struct oarchive *out, const char *tag, struct " s " *v) {"
	print "    int32_t i;\n    int rc = out->start_vector(out, tag, &v->count);"
	print "    for (i = 0; i < v->count; i++)"
	write_out(e, "data", "data[i]")
	print "    return rc ? rc : out->end_vector(out, tag);\n}"
	print "int deserialize_" s "(struct iarchive *in, const char *tag, struct " s " *v) {"
	print "    int32_t i, count = 0;\n    int rc = in->start_vector(in, tag, &count);"
	print "    v->count = 0;\n    v->data = 0;"
	print "    if (!rc && count > 0)\n        rc = allocate_" s "(v, count);"
	print "    for (i = 0; !rc && i < v->count; i++)"
	read_in(e, "value", "data[i]")
	print "    return rc ? rc : in->end_vector(in, tag);\n}"
}

function record(    i) {
	for (i = 0; i < n; i++)
		if (type[i] ~ /^vector</)
			vector(type[i])
	if (part == "h") {
		print "struct " name " {"
		for (i = 0; i < n; i++)
			print "    " ctype(type[i]) " " field[i] ";"
		print "};"
		print "int serialize_" name "(struct oarchive *out, const char *tag, struct " name " *v);"
		print "int deserialize_" name "(struct iarchive *in, const char *tag, struct " name "*v);"
		print "void deallocate_" name "(struct " name "*);"
		return
	}
	print "int serialize_" name "(struct oarchive *out, const char *tag, struct " name " *v) {"
	print "    int rc = out->start_record(out, tag);"
	for (i = 0; i < n; i++)
		write_out(type[i], field[i], field[i])
	print "    return rc ? rc : out->end_record(out, tag);\n}"
	print "int deserialize_" name "(struct iarchive *in, const char *tag, struct " name " *v) {"
	print "    int rc = in->start_record(in, tag);\n    memset(v, 0, sizeof *v);"
	for (i = 0; i < n; i++)
		read_in(type[i], field[i], field[i])
	print "    return rc ? rc : in->end_record(in, tag);\n}"
	print "void deallocate_" name "(struct " name " *v) {\n    (void)v;"
	for (i = 0; i < n; i++)
		if (!(type[i] ~ /^(boolean|int|long)$/))
			print "    deallocate_" suffix(type[i]) "(&v->" field[i] ");"
	print "}"
}

BEGIN {
	split("boolean Bool int Int long Long ustring String buffer Buffer", s)
	for (i = 1; i in s; i += 2)
		SUFFIX[s[i]] = s[i + 1]
	CTYPE["boolean"] = CTYPE["int"] = "int32_t"
	CTYPE["long"] = "int64_t"
	CTYPE["ustring"] = "char *"
	CTYPE["buffer"] = "struct buffer"
	if (part == "h")
		print "#ifndef __ZOOKEEPER_JUTE__\n#define __ZOOKEEPER_JUTE__\n#include \"recordio.h\"\n\n" \
			"#ifdef __cplusplus\nextern \"C\" {\n#endif\n"
	else
		print "#include <errno.h>\n#include <stdlib.h>\n#include <string.h>\n#include \"zookeeper.jute.h\"\n"
}

{
	sub(/\/\/.*/, "")
	if (/\/\*/)
		in_comment = 1
	if (in_comment) {
		if (/\*\//)
			in_comment = 0
		next
	}
}

$1 == "class" {
	name = $2
	n = 0
	next
}

# "vector<ustring>paths;" is as good as "vector<ustring> paths;".
name != "" && /;/ {
	gsub(/;/, "")
	sub(/>/, "> ")
	type[n] = $1
	field[n++] = $2
	next
}

name != "" && /}/ {
	record()
	name = ""
}

END {
	if (part == "h")
		print "\n#ifdef __cplusplus\n}\n#endif\n\n#endif"
}
