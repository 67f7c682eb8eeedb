# What the Ruby programs of the matrix share: the texts, and how a check reports. See checks.toml.
require "json"

$stdout.sync = true
PREFIX = "storage.#{ENV.fetch("TABLE_PREFIX")}"
FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, LONG, STREAM, WIDE =
  %w[FOREIGN_WRITE FOREIGN_WRITE_MESSAGE LONG STREAM WIDE].map { |name| ENV.fetch(name) }
PEOPLE = 4980
TEXT = "Þóra 東京 🐘 ' \" \\ \n\t $1"

def emit(**members) = puts(JSON.generate(members))

def driver(name, version) = emit(driver: name, version: version)

def not_applicable(check, why) = emit(check: check, result: "not applicable", why: why)

# Runs a check; what it raises has failed it, and the next one goes on.
def check(name)
  yield
  emit(check: name, result: "ok")
rescue StandardError, NotImplementedError => e
  emit(check: name, result: "failed", why: e.full_message(highlight: false))
end

def equal(want, got)
  raise "wanted #{want.inspect}, got #{got.inspect}" unless want == got
end

# The error that the block must end with.
def raises(kind)
  yield
rescue kind => e
  e
else
  raise "no error"
end

def rotate
  emit(ask: "rotate")
  $stdin.readline.strip
end
