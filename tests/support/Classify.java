import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;

/** Classifies a photo with Java's own client, which offers HTTP/2: a file, bytes, and chunks. */
public class Classify {
  public static void main(String[] arguments) throws Exception {
    URI address = URI.create(arguments[0] + "/classify");
    byte[] photo = Files.readAllBytes(Path.of(arguments[1]));
    HttpClient client = HttpClient.newHttpClient();
    List<BodyPublisher> bodies = List.of(
        BodyPublishers.ofFile(Path.of(arguments[1])),
        BodyPublishers.ofByteArray(photo),
        BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(photo)));
    for (BodyPublisher body : bodies) {
      HttpRequest request =
          HttpRequest.newBuilder(address).header("Content-Type", "image/jpeg").POST(body).build();
      var answer = client.send(request, BodyHandlers.ofString());
      System.out.println(answer.statusCode() + " " + answer.body());
    }
  }
}
