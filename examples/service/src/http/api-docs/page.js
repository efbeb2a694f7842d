// The page follows the system, also when it changes its mind.
const dark = matchMedia('(prefers-color-scheme: dark)');
const follow = () => document.documentElement.classList.toggle('dark-mode', dark.matches);
follow();
dark.addEventListener('change', follow);

window.SwaggerUIBundle({
  url: '/api/openapi.json',
  dom_id: '#api',
  deepLinking: true,
  docExpansion: 'none',
  filter: true,
  // Nothing that is typed in here is kept, and nothing is sent to a validator elsewhere.
  persistAuthorization: false,
  validatorUrl: null,
  queryConfigEnabled: false,
});
