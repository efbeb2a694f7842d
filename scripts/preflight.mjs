// Stops with a clear message on a Node that cannot run TypeScript by itself. Plain JavaScript, so that such a Node can read it.
const [major, minor] = process.versions.node.split('.').map(Number);
if (major < 22 || (major === 22 && minor < 18)) {
  process.stderr.write(
    `KeyGuard runs its TypeScript sources directly, which takes Node 22.18 or later; this is ${process.versions.node}.\n` +
      'On Linux with glibc (x64, arm64) the install brings a suitable Node by itself; here, install one from nodejs.org.\n',
  );
  process.exit(1);
}
