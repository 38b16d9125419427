/*
 * Messages for people: `tool: what: why` lines on stderr. errno is preserved. Never used on the fault path.
 */
#ifndef FM_LOG_H
#define FM_LOG_H

/* Exit codes of every tool: part of the contract. */
enum fm_exit { FM_EXIT_OK = 0, FM_EXIT_FAILED = 1, FM_EXIT_USAGE = 2, FM_EXIT_PEER = 3 };

/* Name the tool (kept, not copied). Before any thread is made. */
void fm_log_init(const char *tool);
/* One more -v. 0: warnings only; 1: info; 2: debug. Before any thread is made. */
void fm_log_more(void);
/* Print `tool: ...` and a newline as one write(2). Any thread. */
void fm_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void fm_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void fm_debug(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* As fm_warn, then exit with code. For main() and its helpers in cmd/, never in lib/. */
_Noreturn void fm_die(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
